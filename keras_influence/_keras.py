"""The seams with Keras: every use of a non-public name stands here."""

import contextlib
import inspect

import keras
import tensorflow as tf
from keras.src.backend import Variable
from keras.src.models.functional import Functional
from keras.src.models.model import functional_init_arguments
from keras.src.trainers.data_adapters import get_data_adapter

__all__ = [
    "Functional",
    "Variable",
    "build_compiled_loss",
    "call_model",
    "compute_loss",
    "frozen_variables",
    "full_precision",
    "functional_init_arguments",
    "get_data_adapter",
    "has_default_loss",
    "loss_state",
    "replaced_losses",
    "uses_loss",
]


def call_model(model, x):
    """The model's output in inference mode: dropout off, BatchNormalization frozen."""
    if model._call_has_training_arg:
        return model(x, training=False)
    return model(x)


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


def loss_state(model):
    """Objects that change when the model is compiled anew."""
    return (model._compile_loss, type(model).compute_loss)


def build_compiled_loss(model, y, y_pred):
    """Create the compiled loss's own variables now, where variables may be created."""
    loss = model._compile_loss
    if loss is not None and not loss.built and y is not None:
        loss(y, y_pred)


def uses_loss(model, functions):
    """Names of those of these loss functions that a model with a built loss is compiled with."""
    return sorted({loss.fn.__name__ for loss in _wrappers(model, functions)})


@contextlib.contextmanager
def replaced_losses(model, replacements):
    """Let the compiled loss call other functions of (y_true, y_pred) in place of known ones."""
    wrappers = _wrappers(model, replacements)
    originals = [loss.fn for loss in wrappers]
    try:
        for loss, fn in zip(wrappers, originals):
            loss.fn = replacements[fn]
        yield
    finally:
        for loss, fn in zip(wrappers, originals):
            loss.fn = fn


def _wrappers(model, functions):
    if not has_default_loss(model) or model._compile_loss is None:
        return []
    losses = [entry.loss for entry in model._compile_loss._flat_losses or ()]
    unique = {id(loss): loss for loss in losses if getattr(loss, "fn", None) in functions}
    return list(unique.values())


def frozen_variables(model):
    """The variables of layers that are not trainable."""
    return [v for layer in model._flatten_layers() if not layer.trainable for v in layer.variables]


@contextlib.contextmanager
def full_precision(model):
    """Let a mixed-precision model compute in the precision of its variables.

    Second derivatives in float16 or bfloat16 are too coarse to solve with.
    """
    mixed = [
        layer
        for layer in model._flatten_layers()
        if layer.compute_dtype != layer.variable_dtype and layer.variable_dtype is not None
    ]
    policies = [layer.dtype_policy for layer in mixed]
    try:
        for layer in mixed:
            layer._dtype_policy = keras.DTypePolicy(layer.variable_dtype)
        yield
    finally:
        for layer, policy in zip(mixed, policies):
            layer._dtype_policy = policy
