"""Weight gradients of single examples, layer by layer, from inputs a and output gradients δ."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.sites import apply
from keras_influence.engine.layers.views import input_rows


def weight_gradients(objective, site, delta, weights):
    """∂⟨f(aᵢ; w), δᵢ⟩/∂w for each of `weights`, (b, *shape)."""
    rows = input_rows(site.layer, site.inputs)
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
