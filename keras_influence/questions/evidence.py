"""What stands beside scores: how well each system was solved, and by which plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.questions.blocks import Block, Target
from keras_influence.questions.plan import Plan

# The fields of a result that hold it: by test example, and of all of them.
ARRAYS = ("residual", "iterations", "converged")
SETTINGS = (
    "solver",
    "curvature",
    "damping",
    "passes",
    "details",
    "reason",
    "target",
    "parameters",
)


class Evidence:
    """What the solves for n test examples say of themselves, as blocks come in.

    Attributes:
        residual, iterations, converged: (n,) as in `InfluenceScores`.
        passes: over the training data so far, all blocks together.
        details: what else the solver has said.
    """

    def __init__(self, n: int) -> None:
        self.residual = np.full(n, np.nan)
        self.iterations = np.zeros(n, int)
        self.converged = np.zeros(n, bool)
        self.passes = 0.0
        self.details: dict[str, Any] = {}

    def add(self, block: Block) -> None:
        """What one block's solve says."""
        where, solution = block.where, block.solution
        self.residual[where] = solution.residual
        self.iterations[where] = solution.iterations
        self.converged[where] = solution.converged
        self.passes += solution.passes
        self.details |= solution.details


def described(problem: Problem, plan: Plan, target: Target | None) -> dict[str, Any]:
    """The fields of a result that say what was computed, by which plan."""
    return {
        "solver": plan.solver.get_config(),
        "curvature": plan.curvature,
        "damping": plan.damping,
        "reason": plan.reason,
        "target": name_of(target),
        "parameters": tuple(v.path for v in problem.parameters.variables),
    }


def without_solve(
    n: int,
    method: str,
    config: dict[str, Any],
    target: Target | None,
    variables: Iterable[Any],
    damping: float = 0.0,
) -> dict[str, Any]:
    """The same, and the evidence, of a result for n test examples for which no system was solved.

    Args:
        method: what it was computed by, with what `config`.
        variables: θ.
        damping: λ, if the method has one of its own.
    """
    return {
        "residual": np.zeros(n),
        "iterations": np.zeros(n, int),
        "converged": np.ones(n, bool),
        "solver": {"class_name": method, "config": config},
        "curvature": "none",
        "damping": damping,
        "target": name_of(target),
        "parameters": tuple(v.path for v in variables),
    }


def name_of(target: Target | None) -> str:
    """What scores are the change of, in words."""
    if target is None:
        return "test loss"
    name = getattr(getattr(target, "function", target), "__name__", "<lambda>")
    return "target" if name == "<lambda>" else name
