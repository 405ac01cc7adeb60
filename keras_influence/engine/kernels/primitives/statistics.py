"""Moments, norms, local response normalisation, softsign, tanh and cross-entropy.

`tf.nn.moments` stops the gradient of the mean inside the variance. First derivatives are not
affected (E[x - mean] is zero), second ones are: Hessian products through LayerNormalization
and GroupNormalization come out wrong. Since the operation that stops it is rightly used
elsewhere, `moments` is replaced as a function, in the module where both of its public names
find it.

The gradients of `tf.nn.softsign` and `tf.nn.local_response_normalization` have no gradients of
their own, that of the gradient of tanh cannot take rows (`IndexedSlices`, as from a segment sum),
that of a Euclidean norm divides by what comes from above, and that of a cross-entropy knows of the
logits only, not of labels that depend on weights, and is slow.
"""

import tensorflow as tf
from tensorflow.python.ops import nn_impl

from keras_influence.engine.kernels.primitives.taped import gradient_of


def _moments(original, x, axes, shift=None, name=None, keep_dims=None, keepdims=None):
    """`tf.compat.v1.nn.moments`, to which `tf.nn.moments` refers, without the stop."""
    wide = tf.cast(x, tf.float32) if x.dtype == tf.float16 else tf.convert_to_tensor(x)
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=True)
    if not (keepdims or keep_dims):
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _stop_gradient(original, op, upstream):
    """None, except in (y - stop_gradient(mean(y)))² of moments that were traced outside."""
    name = getattr(op, "name", "")
    if "/moments/" not in f"/{name}" or op.inputs[0].op.type != "Mean":
        return original(op, upstream)
    y = op.inputs[0].op.inputs[0]
    users = [user for user in op.outputs[0].consumers() if user.type == "SquaredDifference"]
    squared = any(user.inputs[0] is y for user in users)
    return upstream if squared else original(op, upstream)


def _softsign_grad(original, op, upstream):
    """Of slopes / (1 + |x|)²."""
    slopes, x = op.inputs
    size = 1 + tf.abs(x)
    return upstream / size**2, -2 * upstream * slopes * tf.sign(x) / size**3


def _tanh_grad(original, op, upstream):
    return original(op, tf.convert_to_tensor(upstream))


def _euclidean_norm(original, op, upstream):
    x, axes = op.inputs
    shape = tf.shape(tf.reduce_any(tf.zeros(tf.shape(x), tf.bool), axes, keepdims=True))
    return x * (tf.reshape(upstream, shape) / tf.reshape(op.outputs[0], shape)), None


def _cross_entropy(original, op, upstream, slope_upstream):
    """The second output is softmax - labels, the slope: it depends on the labels too."""
    logits, labels = original(op, upstream, None)
    if _is_zero(slope_upstream):
        return logits, labels
    return logits + _bent(op.inputs[0], slope_upstream), labels - slope_upstream


def _sparse_cross_entropy(original, op, upstream, slope_upstream):
    logits, labels = original(op, upstream, None)
    if not _is_zero(slope_upstream):
        logits += _bent(op.inputs[0], slope_upstream)
    return logits, labels


def _bent(logits, upstream):
    """(diag(s) - s sᵀ) times each row, s the softmax.

    TensorFlow's own has a product of matrices for each row, which takes as long as a dense layer.
    """
    s = tf.nn.softmax(logits)
    return s * (upstream - tf.reduce_sum(upstream * s, -1, keepdims=True))


def _is_zero(upstream):
    return upstream is None or getattr(upstream, "_is_zeros_tensor", False)


def _local_response(original, op, upstream):
    """Of x / (bias + alpha · Σ x²)^beta, with the sum over neighbouring channels."""
    bias, alpha, beta = (op.get_attr(name) for name in ("bias", "alpha", "beta"))
    radius = op.get_attr("depth_radius")

    def normalised(x):
        channels = tf.shape(x)[-1]
        near = tf.ones([channels, channels], x.dtype)
        reach = tf.minimum(radius, channels)  # A band may be no wider than the matrix.
        near = tf.linalg.band_part(near, reach, reach)
        return x * (bias + alpha * tf.einsum("...c,cd->...d", x**2, near)) ** -beta

    return gradient_of(normalised, op.inputs, upstream)


GRADIENTS = {
    "StopGradient": _stop_gradient,
    "LRN": _local_response,
    "SoftsignGrad": _softsign_grad,
    "TanhGrad": _tanh_grad,
    "EuclideanNorm": _euclidean_norm,
    "SoftmaxCrossEntropyWithLogits": _cross_entropy,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_cross_entropy,
}
FUNCTIONS = {(nn_impl, "moments"): _moments, (tf.compat.v1.nn, "moments"): _moments}
