"""Convolutions of one pixel with strides: cut the pixels out first, and no stride is left.

TensorFlow with oneDNN corrupts memory, on some processors, in the filter gradient of such a
convolution for batches of one or three; and so in the gradient of its transpose.
"""

import tensorflow as tf

from keras_influence.engine.kernels.primitives.taped import gradient_of


def _conv2d(original, op, upstream):
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
