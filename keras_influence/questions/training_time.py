"""How long a model was trained, as damping: what a short training leaves of a curvature.

Gradient descent from far away for a time t shrinks the error along an eigenvector of
the curvature with eigenvalue σ by 1 - e^(-σt), so that (1 - e^(-σt))/σ stands where a minimum
has 1/σ. That is t for σ below 1/t and 1/σ above, as is 1/(σ + 1/t): damping 1/t.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_influence import _keras
from keras_influence.engine.loss.checks import unscaled
from keras_influence.errors import warn

# Steps at which a schedule is asked for its rate.
_SAMPLE = 1000
# What makes an optimizer clip gradients.
_LIMITS = ("clipnorm", "global_clipnorm", "clipvalue")


def training_damping(model: Any, sums: bool) -> tuple[float, str]:
    """λ = 1 / (learning rate x steps) of the model's optimizer, and the reason in words.

    Momentum μ makes a step as long as 1/(1 - μ) of them. A rate that callbacks have changed
    counts as it is now; that of a schedule as it was at each step.

    Args:
        model: a compiled model.
        sums: whether its loss is a sum over a batch. It takes an epoch to go once along the
            gradient of all of the data then: a step is as long as one over its batches.

    Raises:
        ValueError: the optimizer is another than SGD, whose steps are no descent along the
            gradient, or has done no step; or batches have to be known, and are not.
    """
    optimizer = sgd_of(model, "`damping='training'`", "Give a number, or 'auto'.")
    steps = int(optimizer.iterations)
    if not steps:
        raise ValueError(
            "`damping='training'` needs an optimizer that has trained the model: it has done no "
            "step. Give a number, or 'auto'."
        )
    rates = scheduled_rates(optimizer, np.unique(np.linspace(0, steps - 1, _SAMPLE).astype(int)))
    time = steps * (np.float64(optimizer.learning_rate) if rates is None else rates.mean())
    time = float(time / (1 - optimizer.momentum))
    if sums:
        time /= _batches_of(model)
    return 1 / time, f"damping 1/{time:.3g}: {steps} steps of training"


def _batches_of(model: Any) -> int:
    """How many batches an epoch of the last `fit` had.

    Raises:
        ValueError: there was none in this process, or its data did not say.
    """
    params = getattr(getattr(model, "history", None), "params", None) or {}
    if not params.get("steps"):
        raise ValueError(
            "`damping='training'` should know how many batches an epoch had, as the loss is a sum over "
            "a batch; `model.history` of `fit` does not say. Give a number, or compile with a mean."
        )
    return int(params["steps"])


def scheduled_rates(optimizer: Any, steps: Iterable[int]) -> np.ndarray | None:
    """The learning rates of some of an optimizer's steps, counted from 0; None without a schedule."""
    optimizer = unscaled(optimizer)
    schedule = _keras.schedule_of(optimizer)
    if schedule is None:
        return None
    # A schedule counts batches; a step is made with the last of those that it accumulates.
    every = optimizer.gradient_accumulation_steps or 1
    return np.array([schedule(every * (int(step) + 1) - 1) for step in steps], np.float64)


def sgd_of(model: Any, name: str, way_out: str) -> Any:
    """The model's optimizer, whose steps go along the gradient; without the scaling of losses around it.

    A step that loss scaling leaves out is none of this optimizer's `iterations`.

    Args:
        model: a compiled model.
        name: of what needs it, for the message.
        way_out: what to do without.

    Raises:
        ValueError: it is another than SGD.
    """
    optimizer = unscaled(model.optimizer)
    if isinstance(optimizer, keras.optimizers.SGD):
        _warn_of_clipping(optimizer, name, way_out)
        return optimizer
    found = "no optimizer" if optimizer is None else type(optimizer).__name__
    if optimizer is not model.optimizer:
        found = f"{type(model.optimizer).__name__} of {found}"
    raise ValueError(
        f"{name} needs the learning rate of SGD as a time of gradient descent; other "
        f"optimizers' steps are none. Received: {found}. {way_out}"
    )


def decay_of(optimizer: Any, variables: Any) -> float:
    """The decay of weights that an optimizer has for these, which is one for all of them.

    Raises:
        ValueError: some of them are excluded.
    """
    decay = float(optimizer.weight_decay or 0.0)
    left_out = [v.path for v in variables if decay and not _keras.decays(optimizer, v)]
    if 0 < len(left_out) < len(variables):
        raise ValueError(
            "SOURCE should have one decay for all weights, and the optimizer's weight_decay leaves out "
            f"{', '.join(left_out)}. Choose those that decay alike by `variables=`, or take `Replay`."
        )
    return 0.0 if left_out else decay


def _warn_of_clipping(optimizer: Any, name: str, way_out: str) -> None:
    """Say that steps may have been shorter than their learning rate has it."""
    limits = {limit: getattr(optimizer, limit, None) for limit in _LIMITS}
    clips = [f"{limit}={value:g}" for limit, value in limits.items() if value is not None]
    if clips:
        warn(
            f"{name} takes each step of SGD for one along the gradient, as long as its learning rate has it; "
            f"the optimizer clips gradients ({', '.join(clips)}), and steps that it clipped were shorter. "
            f"{way_out}",
            UserWarning,
        )
