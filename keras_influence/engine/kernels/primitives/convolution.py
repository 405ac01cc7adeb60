"""Convolutions whose gradients TensorFlow gets wrong on the way.

One pixel with strides: cut the pixels out first, and no stride is left. With oneDNN memory is corrupted, on
some processors, in the filter gradient of such a convolution for batches of one or three; and so in the
gradient of its transpose.

In groups: one convolution for each group. A vectorised map over filter gradients takes what it maps over for
channels, and mixes the groups.
"""

import tensorflow as tf

from keras_influence.engine.kernels.primitives.taped import gradient_of

# More groups would make too large a graph; maps over their filter gradients stay wrong.
_GROUPS = 32


def _conv2d(original, op, upstream):
    groups = _groups(op)
    if 1 < groups <= _GROUPS:
        return gradient_of(lambda *inputs: _by_groups(op, groups, *inputs), op.inputs, upstream)
    if not _strided_pixel(op, op.inputs[1]):
        return original(op, upstream)
    options = {"strides": [1] * 4, "padding": "VALID", "data_format": _format(op)}

    def without_strides(image, kernel):
        return tf.raw_ops.Conv2D(input=_cut(op, image), filter=kernel, **options)

    return gradient_of(without_strides, op.inputs, upstream)


def _conv2d_backprop_input(original, op, upstream):
    """The gradient of a transposed convolution, and of the gradient of a convolution."""
    _, kernel, image = op.inputs
    if not _strided_pixel(op, kernel):
        return original(op, upstream)
    options = {"strides": [1] * 4, "padding": "VALID", "data_format": _format(op)}
    pixels = _cut(op, upstream)
    kernel_gradient = tf.raw_ops.Conv2DBackpropFilter(
        input=pixels, filter_sizes=tf.shape(kernel), out_backprop=image, **options
    )
    return None, kernel_gradient, tf.raw_ops.Conv2D(input=pixels, filter=kernel, **options)


def _groups(op):
    """How many groups of channels there are, as far as that is known; else 1."""
    image, kernel = (t.shape for t in op.inputs)
    channels = image[_channels(op)]
    return channels // kernel[2] if channels and kernel[2] else 1


def _by_groups(op, groups, image, kernel):
    axis = _channels(op)
    pairs = zip(tf.split(image, groups, axis), tf.split(kernel, groups, 3))
    names = ("strides", "use_cudnn_on_gpu", "padding", "explicit_paddings", "dilations")
    options = {name: op.get_attr(name) for name in names}
    parts = [
        tf.raw_ops.Conv2D(input=a, filter=w, data_format=_format(op), **options) for a, w in pairs
    ]
    return tf.concat(parts, axis)


def _channels(op):
    return 1 if _format(op) == "NCHW" else 3


def _strided_pixel(op, kernel):
    padding = op.get_attr("padding")
    named = padding in ("SAME", "VALID", b"SAME", b"VALID")
    return named and kernel.shape[:2] == (1, 1) and max(op.get_attr("strides")) > 1


def _cut(op, image):
    return image[tuple(slice(None, None, step) for step in op.get_attr("strides"))]


def _format(op):
    name = op.get_attr("data_format")
    return name.decode() if isinstance(name, bytes) else name


GRADIENTS = {"Conv2D": _conv2d, "Conv2DBackpropInput": _conv2d_backprop_input}
