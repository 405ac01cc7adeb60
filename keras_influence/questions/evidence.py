"""What stands beside scores: how well each system was solved, by which plan, and in which words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.questions.blocks import Block, Target
from keras_influence.questions.plan import Plan
from keras_influence.report.methods import method_of

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


def meaning_lines(scores: Any) -> list[str]:
    """The sign and unit of scores, for their `repr`."""
    signs = (
        ("helpful, a proponent", "harmful, an opponent")
        if scores.target == "test loss"
        else ("leaving j out raises it", "leaving j out lowers it")
    )
    unit = "the loss" if scores.target == "test loss" else f"`{scores.target}`"
    over = ", over √self-influence of j" if scores.details.get("relative") else ""
    best, worst = _extremes(scores.values)
    return [
        f"  values[i, j]  predicted change of {scores.target} i if training example j were",
        f"                left out, in units of {unit}{over}",
        f"  positive      {signs[0]}{best}",
        f"  negative      {signs[1]}{worst}",
    ]


def _extremes(values: Any) -> tuple[str, str]:
    """The strongest of all in words, where that is no long reading from a disk."""
    if not isinstance(values, np.ndarray):
        return "", ""
    pairs = [np.unravel_index(place, values.shape) for place in (values.argmax(), values.argmin())]
    best, worst = (f"; strongest: values[{i}, {j}] = {values[i, j]:+.3g}" for i, j in pairs)
    return best, worst


def evidence_lines(result: Any) -> list[str]:
    """How a result was computed and how well, for its `repr`."""
    return [*_solution_lines(result), *_models_line(result)]


def _models_line(result: Any) -> list[str]:
    """Of a mean of several models' scores: how far it can be trusted."""
    error = getattr(result, "error", None)
    if error is None:
        return []
    beyond = np.mean(np.abs(result.values) > 2 * error)
    count = result.details["models"]
    return [
        f"  mean of       {count} models; {beyond:.0%} of scores beyond two standard errors of 0"
    ]


def _solution_lines(result: Any) -> list[str]:
    if result.curvature == "none":
        title, words = method_of(result).line(result)
        return [f"  {title:<14}{words}"]
    solver = result.solver["class_name"]
    worst = f"largest relative residual {result.residual.max():.1e}"
    count = f"{int(result.converged.sum())} of {len(result.converged)}"
    solved = f"{count} solves converged, {worst}"
    if result.details.get("approximation"):
        solved = f"an approximation: {worst}"
    return [
        f"  solved with   {solver}, curvature {result.curvature!r}, damping {result.damping:g}",
        f"  certified     {solved}, {result.passes:.4g} passes over the data",
    ]


def about_line(result: Any) -> str:
    """Which weights count as θ, for its `repr`."""
    about = f"{len(result.parameters)} weights: {', '.join(result.parameters)}"
    return f"  about         {textwrap.shorten(about, 70, placeholder=', ...')}"
