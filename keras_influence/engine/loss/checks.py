"""What is looked at before any long work: the model, its loss, and whether data fit them."""

import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.loss.smooth import SMOOTH, TEMPERATURE
from keras_influence.errors import ObjectiveWarning, warn

_COARSE = ("float16", "bfloat16")
# How far weights are moved, as a part of their size; and what part of that a constraint may change by rounding.
_STEP, _SLACK = 1e-3, 0.05
_OTHER_TEMPERATURE = (
    "For another temperature, model.compile(loss=keras_influence.SmoothHinge(t)), which keeps the "
    "weights; "
)
# What has been said about a model, for as long as it lives.
_said = weakref.WeakKeyDictionary()


def check_model(model, hidden=True):
    """Raise unless `model` is a built, compiled Keras model with finite trainable weights.

    Args:
        hidden: warn of what training minimises beside the compiled loss.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
    if not tf.executing_eagerly():
        raise RuntimeError(
            "Influence is asked for inside a `tf.function`, as a `train_step` or a metric is, where weights have "
            "no values yet. Ask outside of it: after `fit`, or in a callback such as `InfluenceCallback`."
        )
    if not is_built(model):
        raise ValueError(
            "`model` should be built. Call it on a batch, `model.build(input_shape)` or "
            "`model.fit(...)` first."
        )
    if not model.compiled:
        raise ValueError(
            "`model` should be compiled: its loss defines the influence. Call "
            "`model.compile(loss=...)` first."
        )
    if not model.trainable_variables:
        raise ValueError(
            "`model` should have trainable weights. Set `layer.trainable = True`, and make weights of your own "
            "by `add_weight`: Keras does not know a `tf.Variable`."
        )
    for variable in model.trainable_variables:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(f"`model` has NaN or infinite values in {variable.path}.")
    if hidden:
        _warn_about_hidden_objective(model)
    coarse = sorted({v.dtype for v in model.trainable_variables if v.dtype in _COARSE})
    if coarse:
        warn(
            f"`model` has weights in {', '.join(coarse)}, too coarse for more than two digits. "
            "Mixed precision (`keras.config.set_dtype_policy('mixed_float16')`) keeps them in "
            "float32.",
            ObjectiveWarning,
        )


def check_followed(model, chosen):
    """Raise where a weight is read in a way that no derivative can be taken of: by a saved TensorFlow function."""
    known = {id(v) for v in chosen}
    saved = [
        layer for layer in _keras.layers_of(model) if isinstance(layer, keras.layers.TFSMLayer)
    ]
    names = [s.name for s in saved if any(id(v) in known for v in s.trainable_variables)]
    if names:
        raise ValueError(
            f"The weights of {', '.join(names)}, a TFSMLayer, are read by a saved function that cannot be "
            "given others, so nothing is known of their derivatives here. Set `layer.trainable = False`, "
            "choose others by `variables=`, or build the layers in Keras."
        )


def is_built(model):
    """Whether a model has its weights."""
    return model.built or (bool(model.variables) and all(map(_is_built, _keras.layers_of(model))))


def _is_built(layer):
    """Whether a layer that makes weights of its own when it is built, if any, has been built."""
    return (
        layer.built
        or isinstance(layer, keras.Model)
        or type(layer).build is keras.layers.Layer.build
    )


def _warn_about_hidden_objective(model):
    """Training may minimise more than `compute_loss`, which is all that can be seen here."""
    trains = _keras.class_with_train_step(model)
    if trains:
        _say_once(
            model,
            f"{trains} has a `train_step` of its own. Influence is about "
            "`compute_loss`; a loss that only `train_step` knows is not in it.",
        )


def warn_about_decay(model):
    """Say that an optimizer's decay of weights moves the minimum, and is in no loss."""
    decay = getattr(unscaled(model.optimizer), "weight_decay", None)
    if decay:
        _say_once(
            model,
            f"The optimizer's weight_decay={decay:g} is in no loss, so the curvature does not "
            "hold it. Put it in the model as `kernel_regularizer=keras.regularizers.L2"
            f"({decay / 2:g})`, which for SGD is the same decay, or add it to `damping`.",
        )


def unscaled(optimizer):
    """The optimizer inside of the one that mixed precision wraps it in, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def warn_about_constraints(model, chosen):
    """Say that a constraint holds weights where they are: the minimum is then one within it.

    Of weights in half precision rounding looks the same.
    """
    for variable in chosen:
        fine = variable.dtype not in _COARSE
        if fine and variable.constraint is not None and _is_held(variable):
            name = type(variable.constraint).__name__
            _say_once(
                model,
                f"{name} holds weights of {variable.path}: the minimum is one within that constraint, which no "
                "loss knows, so that scores take these weights for free, and may be far from what training "
                "without an example gives. Leave them out by `variables=`, put a regulariser in its place, or take "
                "`Replay`, whose steps have the constraint.",
            )


def outside_constraints(variables):
    """The paths of variables whose constraint would change them as they are."""
    limited = [v for v in variables if v.constraint is not None and v.dtype not in _COARSE]
    return [v.path for v in limited if _is_changed(v, v.numpy().astype(np.float64))]


def _is_held(variable):
    """Whether the constraint of a variable takes back a small step: outwards or inwards, all weights together."""
    values = variable.numpy().astype(np.float64)
    step = np.where(values < 0, -1, 1) * _step(values)
    return _is_changed(variable, values + step) or _is_changed(variable, values - step)


def _is_changed(variable, point):
    """Whether the constraint of a variable would change these values by more than rounding."""
    # A variable, as the optimizer gives it.
    taken = keras.Variable(point, dtype=variable.dtype, name="weights")
    moved = np.abs(keras.ops.convert_to_numpy(variable.constraint(taken)) - point)
    return bool(moved.max(initial=0.0) > _SLACK * _step(variable.numpy().astype(np.float64)))


def _step(values):
    return _STEP * (np.sqrt(np.mean(values**2)) or 1.0)


def warn_about_kinks(model):
    """Say that smooth losses stand in for those that have no curvature of their own."""
    for name in _keras.uses_loss(model, SMOOTH):
        other = _OTHER_TEMPERATURE if name == keras.losses.hinge.__name__ else ""
        _say_once(
            model,
            f"The loss {name} has a kink in place of a curvature. curvature='auto' takes its "
            f"smooth version with temperature {TEMPERATURE:g} for all derivatives. {other}"
            "curvature='hessian' takes the loss as it is.",
        )


def _say_once(model, message):
    said = _said.setdefault(model, set())
    if message not in said:
        said.add(message)
        warn(message, ObjectiveWarning)
