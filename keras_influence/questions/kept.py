"""What was computed for a system, kept for the next question as long as nothing of it changes.

To make a preconditioner or a factorisation takes longer than to ask by it. The last one is kept,
while its model lives, and serves the next question if the model, its loss, all weights, all
training data and the plan are the same. `Explainer` is for who wants to hold several, or one on disk.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_influence import storage
from keras_influence.engine.data.held import HeldBatches
from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors import packing
from keras_influence.questions.fingerprints import fingerprint_of_data
from keras_influence.questions.memory import bytes_left

if TYPE_CHECKING:
    from keras_influence.questions.plans import Plan

# Bytes that what is kept may take, and what share of those that are left.
_MOST, _SHARE = 6e8, 0.1


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


def recall(problem: Problem, plan: Plan) -> Any:
    """What was computed for the system of this plan by the last question; None if nothing was."""
    for kept in list(_last) if _may_be_kept(problem) else ():
        if kept.objective() is not problem.objective or kept.state != _state(problem):
            forget()
        elif kept.plan == _system(plan):
            return kept.factor
    return None


def keep(problem: Problem, plan: Plan, factor: Any) -> None:
    """Keep this in place of what was kept, unless it is large or of data that are not in memory."""
    if factor is None or any(kept.factor is factor for kept in _last):
        return
    forget()
    if _may_be_kept(problem) and _nbytes(factor) <= min(_MOST, _SHARE * bytes_left()):
        objective = weakref.ref(problem.objective, lambda _: forget())
        _last.append(_Kept(objective, _state(problem), _system(plan), factor))


def forget() -> None:
    """Keep nothing."""
    _last.clear()


def _may_be_kept(problem: Problem) -> bool:
    """Whether the training data are in memory: others would have to be read once more to be compared."""
    return isinstance(problem.train, HeldBatches)


def _state(problem: Problem) -> tuple[Any, ...]:
    return (
        *problem.looks,
        *problem.facts.totals,
        len(problem.train),
        storage.fingerprint_of_weights(problem.model.weights),
        fingerprint_of_data(problem, problem.train, "training data"),
    )


def _system(plan: Plan) -> tuple[Any, ...]:
    return repr(plan.solver), plan.damping, plan.curvature, plan.added


def _nbytes(factor: Any) -> int:
    arrays: list[np.ndarray] = []
    packing.pack(factor, arrays)
    return sum(array.nbytes for array in arrays)
