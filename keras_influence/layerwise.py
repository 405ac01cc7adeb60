"""Weight gradients of single examples, layer by layer, from inputs a and output gradients δ."""

import keras
import numpy as np
import tensorflow as tf

from keras_influence.capture import apply

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D)


def weight_gradients(objective, site, delta, weights):
    """∂⟨f(aᵢ; w), δᵢ⟩/∂w for each of `weights`, (b, *shape)."""
    rows = _rows(site)
    if rows is None:
        return _by_differentiation(objective, site, delta, weights)
    batch, width = tf.shape(delta)[0], delta.shape[-1]
    delta = tf.reshape(delta, [batch, -1, width])
    groups = getattr(site.layer, "groups", 1)
    if groups == 1:
        kernel_gradient = tf.matmul(rows, delta, transpose_a=True)
    else:
        area, depth = int(np.prod(site.layer.kernel_size)), site.inputs.shape[-1] // groups
        rows = tf.reshape(rows, [batch, -1, area, groups, depth])
        parts = tf.reshape(delta, [batch, -1, groups, width // groups])
        kernel_gradient = tf.einsum("bpkgc,bpgf->bkcgf", rows, parts)
    return [
        tf.reduce_sum(delta, 1) if v is getattr(site.layer, "bias", None) else kernel_gradient
        for v in weights
    ]


def _rows(site):
    """R with f(a; W, b) = R W + b, (b, positions, rows of W), for dense layers and convolutions."""
    layer, a = site.layer, site.inputs
    if isinstance(layer, keras.layers.Dense):
        return tf.reshape(a, [tf.shape(a)[0], -1, a.shape[-1]])
    if (
        not isinstance(layer, _CONVOLUTIONS)
        or layer.data_format != "channels_last"
        or layer.padding not in ("valid", "same")
    ):
        return None
    size, strides, rates = layer.kernel_size, layer.strides, layer.dilation_rate
    if isinstance(layer, keras.layers.Conv1D):
        a, size, strides, rates = a[:, None], (1, *size), (1, *strides), (1, *rates)
    patches = tf.image.extract_patches(
        a, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], layer.padding.upper()
    )
    return tf.reshape(patches, [tf.shape(a)[0], -1, patches.shape[-1]])


def _by_differentiation(objective, site, delta, weights):
    """The same for any layer: its own gradient, example by example, vectorised."""
    values = [tf.convert_to_tensor(v.value) for v in weights]

    def gradients_of(one):
        a, d = one
        alone = site._replace(arguments=(a[None], *site.arguments[1:]))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with objective.with_values(list(zip(weights, values))):
                pairing = tf.reduce_sum(apply(alone) * d[None])
        return [tf.convert_to_tensor(g) for g in tape.gradient(pairing, values)]

    return tf.vectorized_map(gradients_of, (site.inputs, delta))
