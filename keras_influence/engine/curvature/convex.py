"""Whether a loss is convex in the outputs, as the Gauss-Newton matrix needs it to be."""

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels.curved import output_curvatures
from keras_influence.engine.layers.faults import has_own_loss
from keras_influence.engine.loss.looks import few_of
from keras_influence.engine.loss.smooth import SMOOTH
from keras_influence.errors import UndefinedCurvatureError
from keras_influence.linalg.solvers.rounding import rounding_of

# Curvature along an output's direction, in units of the largest, that is more than rounding; and
# that of the least convex one which damping and the other examples may yet outweigh.
_CONCAVE, _OUTWEIGHED = 1e-4, 0.1
# Losses that are curved though it may not be seen: of saturated cross-entropies in the logits nothing is left.
_CURVED = (
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.mean_squared_error,
)
# Examples that are looked at where a loss is flat for a few: an outlier's Huber loss is, a hinge far from its kink.
_MORE = 256


def check_convex(ground, train):
    """Raise where the Gauss-Newton matrix is not defined for the model's loss on a few examples.

    Args:
        ground: the `Ground`.
        train: the training data, of which more are looked at where the loss is flat for the few.

    Raises:
        ValueError: the loss is flat or not convex in the outputs, or in weights that it reads besides.
    """
    model = ground.objective.model()
    why = _of_outputs(ground, train, model) or _of_weights(ground, model)
    if why is None:
        return
    way_out = (
        "Use curvature='hessian' with more `damping` or method='direct', or a smooth convex loss."
    )
    if _keras.uses_loss(model, SMOOTH):
        way_out = "Use curvature='auto'."
    if _keras.uses_loss(model, [keras.losses.hinge]):
        way_out = (
            "Use curvature='auto', or compile the model with keras_influence.SmoothHinge(), "
            "which keeps its weights."
        )
    name = _loss_name(model)
    raise UndefinedCurvatureError(
        f"curvature='gauss_newton' is not defined for the loss {name}, which {why}. {way_out}",
        finding=f"the loss {name} {why}",
    )


def _of_outputs(ground, train, model):
    """What is wrong with the loss as a function of the outputs, in words, or None."""
    own = ground.facts.own()
    found = output_curvatures(ground.objective, ground.few, own)
    if not found[1:].any():
        found = output_curvatures(ground.objective, few_of(train, _MORE), own)
    if not found[1:].any() and not _keras.only_uses_losses(model, _CURVED):
        return "has no second derivative in the model's outputs"
    return "is not convex in the model's outputs" if _is_concave(ground, found) else None


def _of_weights(ground, model):
    """The same of outputs and weights together, where a loss of the user's own reads some besides."""
    if not has_own_loss(model):
        return None
    found = output_curvatures(ground.objective, ground.few, ground.facts.own(), weights=True)
    besides = "is not convex in the model's outputs and the weights that it reads besides"
    return besides if _is_concave(ground, found) else None


def _is_concave(ground, found):
    """Whether of some curvatures the first, or the least of the others, is negative by more than rounding."""
    # That of entries of a size of one, as probabilities have: less says nothing of a sign.
    rounding = rounding_of(ground.objective.parameters.dtype.as_numpy_dtype)
    typical, *others = found
    largest = np.abs(others).max()
    concave, outweighed = (max(part * largest, rounding) for part in (_CONCAVE, _OUTWEIGHED))
    return typical < -concave or min(others) < -outweighed


def _loss_name(model):
    if not _keras.has_default_loss(model):
        return f"{type(model).__name__}.compute_loss"
    if not _keras.has_compiled_loss(model):
        return "that layers add by `add_loss`"
    names = [
        loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", loss))
        for loss in tf.nest.flatten(model.loss)
    ]
    return ", ".join(map(str, names))
