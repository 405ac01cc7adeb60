"""A live model as our kernels see it, for as long as one looks into it."""

import contextlib
import inspect
import threading
import warnings

import keras
import tensorflow as tf
from keras.src.losses import loss as loss_module

from keras_influence._keras.layers import inputs_of, layers_of

# Held by whoever looks into a live model: while it is traced or run outside of kernels.
lock = threading.RLock()


def call_model(model, x):
    """The model's output in inference mode: dropout off, BatchNormalization frozen."""
    options = {"training": False} if model._call_has_training_arg else {}
    with warnings.catch_warnings():
        # `fit` has said so once; here each shape of a batch would say it again.
        warnings.filterwarnings("ignore", message="The structure of `inputs` doesn't match")
        return model(x, **options)


def frozen_variables(model):
    """The variables of layers that are not trainable."""
    return [v for layer in layers_of(model) if not layer.trainable for v in layer.variables]


@contextlib.contextmanager
def standing_at(model, mapping):
    """A model as its kernels see it, with other values for some variables: pairs of a variable and a tensor.

    Yields the scope, which keeps what is assigned and what is added to the loss meanwhile.
    """
    with _looking_into(model), keras.StatelessScope(mapping, collect_losses=True) as scope:
        yield scope


@contextlib.contextmanager
def _looking_into(model):
    """A model in full precision, in one piece, the same on any strategy.

    Functions that the user compiled with `tf.function` run in line: once traced, they hold the
    variables themselves, and a trace made here would be found by the next `fit`.
    """
    with lock, _losses_kept(model), _full_precision(model), _undistributed(), _in_line():
        yield


@contextlib.contextmanager
def _losses_kept(model):
    """What layers have added to the loss at the user's last call is there again afterwards."""
    added = [(layer, list(layer._losses)) for layer in layers_of(model)]
    try:
        yield
    finally:
        for layer, losses in added:
            layer._losses.clear()
            layer._losses.extend(losses)


@contextlib.contextmanager
def _in_line():
    """Functions compiled with `tf.function` run as they are written, but Keras's own and TensorFlow's.

    Theirs hold no variables, and some run nowhere else: a grouped convolution's gradient on CPU.
    """
    compiled, owner = type(_compiled), threading.get_ident()
    original = compiled.__call__

    def run(self, *args, **kwargs):
        written = inspect.unwrap(self.python_function)
        module = getattr(written, "__module__", None) or ""
        if threading.get_ident() != owner or module.partition(".")[0] in ("keras", "tensorflow"):
            return original(self, *args, **kwargs)
        return self.python_function(*args, **kwargs)

    compiled.__call__ = run
    try:
        yield
    finally:
        compiled.__call__ = original


@tf.function
def _compiled():
    """For its type."""


@contextlib.contextmanager
def _undistributed():
    """Keras divides losses by the number of replicas inside a strategy's scope; not here."""
    original, owner = loss_module.scale_loss_for_distribution, threading.get_ident()

    def scale(value):
        return value if threading.get_ident() == owner else original(value)

    loss_module.scale_loss_for_distribution = scale
    try:
        yield
    finally:
        loss_module.scale_loss_for_distribution = original


@contextlib.contextmanager
def _full_precision(model):
    """Let a mixed-precision model compute in the precision of its variables.

    Second derivatives in float16 or bfloat16 are too coarse to solve with.
    """
    layers = layers_of(model)
    # What a Sequential model runs is not among its layers.
    layers += [f for layer in layers if (f := getattr(layer, "_functional", None)) is not None]
    mixed = [
        layer
        for layer in layers
        if layer.compute_dtype != layer.variable_dtype and layer.variable_dtype is not None
    ]
    policies = [layer.dtype_policy for layer in mixed]
    # A graph inside the model casts its inputs to the precision that it was made in.
    entries = [t for layer in layers for t in inputs_of(layer)]
    entries += [layer for layer in layers if isinstance(layer, keras.layers.InputLayer)]
    entries = [t for t in entries if t.dtype in ("float16", "bfloat16")] if mixed else []
    dtypes = [t.dtype for t in entries]
    try:
        for layer in mixed:
            layer._dtype_policy = keras.DTypePolicy(layer.variable_dtype)
        for tensor in entries:
            tensor._dtype = mixed[0].variable_dtype
        yield
    finally:
        for layer, policy in zip(mixed, policies):
            layer._dtype_policy = policy
        for tensor, dtype in zip(entries, dtypes):
            tensor._dtype = dtype
