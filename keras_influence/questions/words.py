"""Scores and the evidence for them in words, line by line, for their `repr`."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from keras_influence.report.methods import method_of


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
