"""Keras's compiled losses, and what they are made of."""

import inspect
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops, tree
from keras.src.backend import get_keras_mask
from keras.src.losses import loss as loss_module

from keras_influence._keras.layers import layers_of, losses_added_by
from keras_influence.described import described


def compute_loss(model, x, y, y_pred, sample_weight):
    """The scalar that Keras minimises: `model.compute_loss`, summed if it is not a scalar."""
    arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
    # Overrides written before Keras 3.3 take no `training`.
    if "training" in inspect.signature(model.compute_loss).parameters:
        arguments["training"] = False
    return tf.reduce_sum(model.compute_loss(**arguments))


def has_default_loss(model):
    """Whether `compute_loss` is Keras's own."""
    return type(model).compute_loss is keras.Model.compute_loss


def has_compiled_loss(model):
    """Whether the model was compiled with a loss."""
    return model._compile_loss is not None


def loss_state(model):
    """What changes when the model is compiled anew, or when a loss of the user's reads other values than before."""
    compiled, whole = model._compile_loss, type(model).compute_loss
    functions = [] if compiled is None else tree.flatten(compiled._user_loss)
    functions = [getattr(f, "fn", None) or getattr(f, "call", f) for f in functions]
    return compiled, whole, [described(f) for f in (whole, *functions) if callable(f)]


def build_compiled_loss(model, y, y_pred):
    """Create the compiled loss's own variables now, where variables may be created."""
    loss = model._compile_loss
    if loss is not None and not loss.built and y is not None:
        loss(y, y_pred)


def uses_loss(model, functions):
    """Names of those of these loss functions that a model with a built loss is compiled with."""
    found = [getattr(loss, "fn", None) for loss in _losses_of(model)]
    return sorted({fn.__name__ for fn in found if fn is not None and _in(fn, functions)})


def has_losses_of_keras(model):
    """Whether all compiled losses of a model are Keras's own, classes and functions."""
    losses = _losses_of(model)
    functions = [getattr(loss, "fn", None) or type(loss).call for loss in losses]
    return has_default_loss(model) and all(
        _is_of_keras(made) for made in (*map(type, losses), *functions)
    )


def _is_of_keras(made):
    return (getattr(made, "__module__", None) or "").partition(".")[0] == "keras"


def only_uses_losses(model, functions):
    """Whether a model is compiled with losses, each of which is one of these functions."""
    losses = _losses_of(model)
    return bool(losses) and all(_in(getattr(loss, "fn", None), functions) for loss in losses)


def _losses_of(model):
    """The loss objects that Keras's own `compute_loss` calls; none where it is not that or calls none."""
    if not has_default_loss(model) or model._compile_loss is None:
        return []
    return [entry.loss for entry in model._compile_loss._flat_losses or ()]


def unlike_logarithms(model):
    """Why losses of a model, all of them cross-entropies, are no logarithms of likelihoods; "" if they are."""
    entries = model._compile_loss._flat_losses
    if any(getattr(e.loss, "_fn_kwargs", {}).get("label_smoothing") for e in entries):
        return "labels are smoothed"
    weights = [float(e.loss_weights) for e in entries if e.loss_weights is not None]
    return "losses have weights" if any(weight != 1 for weight in weights) else ""


def _in(function, functions):
    return any(function is known for known in functions)


class LossCall(NamedTuple):
    """One call of a loss object by the compiled losses.

    Attributes:
        loss: the loss object.
        factor: its weight among the losses, or None.
        y_true, y_pred, weight: what it is given; weight may be None.
    """

    loss: object
    factor: object
    y_true: object
    y_pred: object
    weight: object


def twin_of(saveable):
    """A shallow copy of one of Keras's objects, which `copy.copy` would save and load."""
    twin = object.__new__(type(saveable))
    vars(twin).update(vars(saveable))
    return twin


def calls_of_compiled_loss(model, y, y_pred, sample_weight):
    """What Keras's compiled losses call, in order, found by letting a twin of them call it."""
    compiled = model._compile_loss
    if compiled is None:
        return []
    build_compiled_loss(model, y, y_pred)
    calls = []

    def recorder(entry):
        def record(y_true, y_pred, weight=None):
            calls.append(LossCall(entry.loss, entry.loss_weights, y_true, y_pred, weight))
            return tf.zeros([])

        return entry._replace(loss=record)

    twin = twin_of(compiled)
    twin._flat_losses = [recorder(entry) for entry in compiled._flat_losses]
    # One for each loss, or Keras stops after the first.
    twin._metrics = [None] * len(twin._flat_losses)
    twin.call(_beside(compiled, y, y_pred), y_pred, sample_weight)
    # For a single output Keras goes through all its losses and returns the first.
    return calls if keras.tree.is_nested(y) or keras.tree.is_nested(y_pred) else calls[:1]


def _beside(compiled, y, y_pred):
    """Labels of the one output that has a loss, in the structure of all outputs.

    Keras finds that output too, unless a batch has as many rows as there are outputs.
    """
    losses = keras.tree.flatten(compiled._user_loss)
    if keras.tree.is_nested(y) or len(losses) < 2 or sum(x is not None for x in losses) != 1:
        return y
    if not isinstance(y_pred, (list, tuple)) or len(y_pred) != len(losses):
        return y
    return type(y_pred)(None if loss is None else y for loss in losses)


def calls_as_keras_does(loss):
    """Whether `loss(...)` is Keras's own way from `loss.call` to a scalar."""
    return type(loss).__call__ is keras.losses.Loss.__call__


def loss_values(loss, y_true, y_pred):
    """What a loss object computes before Keras reduces it, and the mask that goes with it."""
    masks = [get_keras_mask(y_pred)]
    y_true, y_pred = (
        keras.tree.map_structure(lambda t: ops.convert_to_tensor(t, dtype=loss.dtype), part)
        for part in (y_true, y_pred)
    )
    values = ops.convert_to_tensor(loss.call(y_true, y_pred))
    masks = [m for m in (*masks, get_keras_mask(values)) if m is not None]
    mask = masks[0] & masks[-1] if masks else None
    return ops.convert_to_tensor(values, dtype=loss.dtype), mask


def weighted_values(loss, values, weight, mask):
    """Values times sample weights and mask, as Keras shapes and multiplies them, not reduced."""
    return loss_module.reduce_weighted_values(
        values, sample_weight=weight, mask=mask, reduction=None, dtype=loss.dtype
    )


def added_losses(model):
    """The sum of what layers added by `add_loss` and activity regularisers, a scalar."""
    found = [loss for layer in layers_of(model) for loss in losses_added_by(layer)]
    return (
        ops.sum([ops.sum(loss) for loss in found]) if found else tf.zeros([], keras.config.floatx())
    )


def has_regularisers(model):
    """Whether a trainable weight has a regulariser."""
    return any(getattr(v, "regularizer", None) is not None for v in model.trainable_variables)


def regularisers(model):
    """The sum of the regularisers of the trainable weights, a scalar."""
    found = model._get_regularization_losses()
    return (
        ops.sum([ops.sum(loss) for loss in found]) if found else tf.zeros([], keras.config.floatx())
    )


def takes_logits(model):
    """Whether a loss that the model was compiled with says `from_logits=True`."""
    compiled = model._compile_loss
    entries = getattr(compiled, "_flat_losses", None) or ()
    found = [entry.loss for entry in entries]
    if not found and isinstance(model.loss, keras.losses.Loss):
        found = [model.loss]
    return any(options_of(loss).get("from_logits") for loss in found)


def options_of(loss):
    """What a loss object gives its function besides labels and outputs, by name."""
    return getattr(loss, "_fn_kwargs", {})
