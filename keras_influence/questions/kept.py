"""What was computed for a system, kept for the next question as long as nothing of it changes.

To make a preconditioner or a factorisation takes longer than to ask by it. The last one is kept,
while its model lives, and serves the next question if the model, its loss, all weights, all
training data and the plan are the same. `Explainer` is for who wants to hold several, or one on disk.

Answers are the same bits with it and without; but for conjugate gradients that make a sketch only
when they have seen that it pays, and then begin with it: these agree to their tolerance.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np

from keras_influence import checksums
from keras_influence.engine.data.held import HeldBatches
from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors import packing
from keras_influence.questions.fingerprints import fingerprint_of_data
from keras_influence.questions.memory import bytes_left
from keras_influence.questions.plan import Plan

# Bytes that what is kept may take, or for each weight if that is more, and what share of those that
# are left.
_MOST, _EACH, _SHARE = 6e8, 40, 0.1


class _Kept(NamedTuple):
    """What was computed last.

    Attributes:
        objective: that of the model with this loss and these variables, weakly.
        state: of everything else that the system depends on.
        plan: the part of the plan that does.
        factor: what was computed.
    """

    objective: weakref.ref[Any]
    state: tuple[Any, ...]
    plan: tuple[Any, ...]
    factor: Any


_last: list[_Kept] = []


class System:
    """The system of a plan, with the weights that the model has when this is made."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._problem = problem
        self._plan = repr(plan.solver), plan.damping, plan.curvature, plan.added
        # Data that are not in memory would have to be read once more to be compared.
        self._in_memory = isinstance(problem.train, HeldBatches)
        self._weights = self._weights_now() if self._in_memory else ""

    def recall(self) -> Any:
        """What the last question computed for this system; None if it was about another one."""
        for kept in list(_last) if self._in_memory else ():
            if kept.objective() is not self._problem.objective or kept.state != self._state():
                forget()
            elif kept.plan == self._plan:
                return kept.factor
        return None

    def keep(self, factor: Any) -> None:
        """Keep this in place of what was kept, unless it is large, or the weights have changed meanwhile."""
        if factor is None or any(kept.factor is factor for kept in _last):
            return
        forget()
        most = min(max(_MOST, _EACH * self._problem.parameters.size), _SHARE * bytes_left())
        fits = self._in_memory and _nbytes(factor) <= most
        if fits and self._weights_now() == self._weights:
            objective = weakref.ref(self._problem.objective, lambda _: forget())
            _last.append(_Kept(objective, self._state(), self._plan, factor))

    def _weights_now(self) -> str:
        return checksums.fingerprint_of_weights(self._problem.model.weights)

    def _state(self) -> tuple[Any, ...]:
        problem = self._problem
        data = fingerprint_of_data(problem, problem.train, "training data")
        numbers = *problem.looks, *problem.facts.totals, len(problem.train)
        # Plain values that the model or its loss reads are part of the objective's.
        return *numbers, *problem.reads.variables(), self._weights, data


def forget() -> None:
    """Keep nothing."""
    _last.clear()


def _nbytes(factor: Any) -> int:
    arrays: list[np.ndarray] = []
    packing.pack(factor, arrays)
    return sum(array.nbytes for array in arrays)
