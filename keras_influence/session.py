"""What one call works with: the model's objective, kept between calls, and checked data."""

import weakref
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras, data
from keras_influence.errors import ObjectiveWarning
from keras_influence.objective import Objective

# Compiled kernels live as long as the model, and no longer.
_objectives = weakref.WeakKeyDictionary()


def objective_of(model):
    """The `Objective` of a model, with the kernels compiled in earlier calls.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: it is not built, not compiled, has no trainable or non-finite weights.
    """
    check_model(model)
    variables = model.trainable_variables
    state = (_keras.loss_state(model), [id(v) for v in variables])
    known = _objectives.get(model)
    if known is None or known[0] != state:
        known = _objectives[model] = (state, Objective(model, variables))
    return known[1]


def check_model(model):
    """Raise unless `model` is a built, compiled Keras model with finite trainable weights."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            "`model` should be built. Call it on a batch, `model.build(input_shape)` or "
            "`model.fit(...)` first."
        )
    if not model.compiled:
        raise ValueError("`model` should be compiled: its loss defines the influence. "
                         "Call `model.compile(loss=...)` first.")  # fmt: skip
    if _keras.has_default_loss(model) and not model.loss and not model.losses:
        raise ValueError("`model` should be compiled with a loss: `model.compile(loss=...)`.")
    if not model.trainable_variables:
        raise ValueError("`model` should have trainable weights. Set `layer.trainable = True`.")
    for variable in model.trainable_variables:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(f"`model` has NaN or infinite values in {variable.path}.")
    _warn_about_weight_decay(model)


def _warn_about_weight_decay(model):
    decay = getattr(model.optimizer, "weight_decay", None)
    if decay:
        warnings.warn(
            f"The optimizer's weight_decay={decay:g} is in no loss, so the curvature does not "
            "hold it. Put it in the model as `kernel_regularizer=keras.regularizers.L2"
            f"({decay / 2:g})`, which for SGD is the same decay, or add it to `damping`.",
            ObjectiveWarning,
            stacklevel=5,
        )


def read(examples, objective, batch_size, name, model):
    """A user's data as `Batches` that `model` and its loss can take.

    Raises:
        TypeError, ValueError: see `data.read`, and the loss cannot be taken apart by example.
    """
    batches = data.read(examples, batch_size, name)
    check_loss(model, objective, batches, name)
    return batches


def check_loss(model, objective, batches, name):
    """Compare a small batch with its examples one by one: the loss must be their mean.

    Raises:
        ValueError: the loss ignores sample weights, or one example's part in it
            depends on the others in its batch.
    """
    few = batches.head(3)
    size = tf.nest.flatten(few)[0].shape[0]
    x, y, _ = keras.utils.unpack_x_y_sample_weight(few)
    y_pred = _model_output(model, x, name)
    _keras.build_compiled_loss(model, y, y_pred)
    together = objective.eager_losses(few)
    if together is None:
        raise ValueError(
            "The model's `compute_loss` ignores `sample_weight`, so the part of one example "
            "cannot be told. Multiply each example's loss by `sample_weight` before the mean."
        )
    if any(getattr(t, "_keras_mask", None) is not None for t in tf.nest.flatten(y_pred)):
        return  # Keras divides by the number of unmasked steps in the whole batch.
    for i in range(size):
        alone = objective.eager_losses(tf.nest.map_structure(lambda t: t[i : i + 1], few))
        if not np.allclose(together[i], alone[0], rtol=1e-3, atol=1e-5):
            raise ValueError(
                "The model's loss is not a mean over examples: in a batch of "
                f"{size}, example {i} of `{name}` counts {float(together[i]):.4g}, by itself "
                f"{float(alone[0]):.4g}. Use a loss with reduction='sum_over_batch_size' that "
                "gives each example a loss of its own."
            )


def _model_output(model, x, name):
    try:
        with keras.StatelessScope(collect_losses=True):
            return _keras.call_model(model, x)
    except Exception as error:
        raise ValueError(f"`{name}` does not fit the model's inputs: {error}") from error
