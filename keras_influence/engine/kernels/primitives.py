"""TensorFlow functions that kernels are traced with in place of TensorFlow's own.

`tf.nn.moments` stops the gradient of the mean inside the variance. First derivatives are not
affected (E[x - mean] is zero), second ones are: Hessian products through LayerNormalization
and GroupNormalization come out wrong. The gradient of `tf.nn.softsign` has no gradient of its
own. Those of `tf.nn.max_pool` are right, but slow where many vectors share one forward pass.
"""

import contextlib
import threading

import tensorflow as tf

_lock = threading.RLock()


@contextlib.contextmanager
def replaced(many=False):
    """Let `tf.nn` have these functions meanwhile.

    Args:
        many: whether many vectors share one forward pass. For one vector TensorFlow's own
            `max_pool` is faster.
    """
    with _lock:
        before = {name: getattr(tf.nn, name) for name in _REPLACEMENTS}
        try:
            for name, function in _REPLACEMENTS.items():
                if many or name != "max_pool":
                    setattr(tf.nn, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(tf.nn, name, function)


def _moments(x, axes, shift=None, keepdims=False, name=None):
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return mean, variance


def _softsign(features, name=None):
    return features / (1 + tf.abs(features))


def _max_pool(input, ksize, strides, padding, data_format=None, name=None):
    """The sum over each window of what is largest in it, where windows do not overlap.

    The choice is TensorFlow's own, the first one among equals, and is made once; what
    follows is linear.
    """
    pooled = _ORIGINALS["max_pool"](input, ksize, strides, padding, data_format, name)
    images = input.shape.rank == 4 and input.dtype.is_floating and data_format in (None, "NHWC")
    size = _pair(ksize)
    if not images or size != _pair(strides) or len(size) != 2 or padding != "VALID":
        return pooled
    options = {"ksize": [1, *size, 1], "strides": [1, *size, 1], "padding": padding}
    largest = tf.raw_ops.MaxPoolGrad(
        orig_input=input, orig_output=pooled, grad=tf.ones_like(pooled), **options
    )
    chosen = tf.math.multiply_no_nan(input, tf.stop_gradient(largest))
    return size[0] * size[1] * tf.nn.avg_pool(chosen, **options)


def _pair(size):
    return list(size) if isinstance(size, (list, tuple)) else [size, size]


_REPLACEMENTS = {"moments": _moments, "softsign": _softsign, "max_pool": _max_pool}
_ORIGINALS = {name: getattr(tf.nn, name) for name in _REPLACEMENTS}
