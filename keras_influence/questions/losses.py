"""The loss of each example by itself, which all influence is a derivative of."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.underflow import to_zero


@to_zero
def losses(
    model: Any,
    data: Any,
    *,
    batch_size: int | None = None,
    class_weight: dict[int, float] | None = None,
) -> np.ndarray:
    """The compiled loss of each example, ℓ(z), at `training=False`.

    Args:
        model: a built, compiled `keras.Model`.
        data: examples, in the forms that `train` takes in `influence`.
        batch_size: examples per batch, for arrays; chosen by memory if not given.
        class_weight: dict from class index to weight, as in `model.fit`.

    Returns:
        (n,) float64 array, each loss multiplied by its sample weight if there is one, with what
        layers add for that example by `add_loss`, without regularisers. For a loss that is a mean their mean is what `model.evaluate` says, less
        the regularisers.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    about = {"batch_size": batch_size, "class_weight": class_weight, "name": "data"}
    problem = Problem(model, data, **about, minimum=False)
    return problem.losses(problem.train)
