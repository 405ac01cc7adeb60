"""Scores made of scores: means of several models, and relative to self-influence."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from keras_influence.questions.scores import InfluenceScores


def averaged(parts: list[InfluenceScores]) -> InfluenceScores:
    """`InfluenceScores.averaged`."""
    if len(parts) < 2:
        raise ValueError(
            f"`parts` should be the scores of two models or more. Received: {len(parts)}"
        )
    if not all(hasattr(part, "values") and hasattr(part, "target") for part in parts):
        kinds = sorted({type(part).__name__ for part in parts})
        raise TypeError(f"`parts` should be `InfluenceScores`. Received: {', '.join(kinds)}")
    about = {(part.values.shape, part.target) for part in parts}
    if len(about) > 1:
        raise ValueError(
            "`parts` should be about the same examples and the same target. Received scores of "
            f"{sorted(f'{shape[0]} test x {shape[1]} training examples, {of}' for shape, of in about)}"
        )
    values = np.stack([np.asarray(part) for part in parts])
    return dataclasses.replace(
        parts[0],
        values=values.mean(0),
        error=values.std(0, ddof=1) / np.sqrt(len(parts)),
        residual=np.max([part.residual for part in parts], 0),
        iterations=np.max([part.iterations for part in parts], 0),
        converged=np.all([part.converged for part in parts], 0),
        passes=sum(part.passes for part in parts),
        details={**parts[0].details, "models": len(parts)},
    )


def relative_to(scores: InfluenceScores, self_influence: Any) -> InfluenceScores:
    """`InfluenceScores.relative`."""
    size = np.asarray(self_influence, np.float64)
    if size.shape != (scores.n_train,) or not (size >= 0).all():
        raise ValueError(
            f"`self_influence` should be {scores.n_train} numbers >= 0, one for each training "
            "example, as of keras_influence.self_influence with the same settings. Received: shape "
            f"{size.shape}, smallest {size.min() if size.size else 'none'}"
        )
    root = np.sqrt(size)
    factor = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
    return dataclasses.replace(
        scores,
        values=np.asarray(scores) * factor,
        error=None if scores.error is None else scores.error * factor,
        details={**scores.details, "relative": True},
    )


def is_several(model: Any) -> bool:
    """Whether `model` is a list of models.

    Raises:
        ValueError: it is a list of fewer than two.
    """
    if not isinstance(model, (list, tuple)):
        return False
    if len(model) < 2:
        raise ValueError(
            f"`model`, given as a list, should have two models or more. Received: {len(model)}"
        )
    return True
