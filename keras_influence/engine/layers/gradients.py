"""Weight gradients of single examples, layer by layer, from inputs a and output gradients δ."""

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels.quiet import quiet
from keras_influence.engine.layers import own
from keras_influence.engine.layers.recurrent import Offsets
from keras_influence.engine.layers.sites import InnerCallError, apply, weights_of
from keras_influence.engine.layers.tied import Reversed
from keras_influence.engine.layers.views import as_matrix, input_rows

_NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


def weight_gradients(objective, site, delta, weights):
    """∂⟨f(aᵢ; w), δᵢ⟩/∂w for each of `weights`, (b, *shape).

    Raises:
        InnerCallError: a custom layer's call cannot be repeated for each example.
    """
    if _is_plain_normalisation(site):
        return _of_normalisation(objective, site, delta, weights)
    if isinstance(site.layer, keras.layers.DepthwiseConv2D) and _is_channels_last(site.layer):
        return _of_depthwise(site, delta, weights)
    if isinstance(site.layer, own.Own):
        return _of_own(objective, site, delta, weights)
    if isinstance(site.layer, Offsets):
        return [tf.reduce_sum(delta, 1) for _ in weights]
    if isinstance(site.layer, Reversed):
        a, delta = as_matrix(site).signals(delta, site.layer.embeddings.shape[0])
        return [tf.matmul(a, delta, transpose_a=True) for _ in weights]
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
    bias = getattr(site.layer, "bias", None)
    return [
        tf.reduce_sum(delta, 1) if v is bias else tf.reshape(kernel_gradient, [batch, *v.shape])
        for v in weights
    ]


def _is_plain_normalisation(site):
    """Whether scale and offset are vectors along the last axis."""
    if type(site.layer) not in _NORMALISATIONS:
        return False
    axes = np.ravel(site.layer.axis)
    return len(axes) == 1 and axes[0] in (-1, site.outputs.shape.rank - 1)


def _of_normalisation(objective, site, delta, weights):
    """Of z = γ ∘ x̂ + β, with x̂ what the layer gives for γ = 1 and β = 0."""
    layer = site.layer
    plain = [
        (v, tf.ones_like(v.value) if v is layer.gamma else tf.zeros_like(v.value))
        for v in weights_of(layer)
    ]
    with objective.with_values(plain):
        normed = apply(site)
    axes = list(range(1, len(delta.shape) - 1))
    return [tf.reduce_sum(delta * normed if v is layer.gamma else delta, axes) for v in weights]


def _is_channels_last(layer):
    return layer.data_format == "channels_last"


def _of_depthwise(site, delta, weights):
    """Of a depthwise convolution: for each place in the kernel, the input there against δ."""
    layer, x = site.layer, site.inputs
    height, width, depth, multiplier = layer.kernel.shape
    strides, rates = layer.strides, layer.dilation_rate
    shape = tf.shape(delta)
    rows, columns = delta.shape[1] or shape[1], delta.shape[2] or shape[2]
    if layer.padding == "same":
        paddings = [
            _padding(size, out, step, (k - 1) * rate + 1)
            for size, out, step, k, rate in zip(
                tf.unstack(tf.shape(x)[1:3]), (rows, columns), strides, (height, width), rates
            )
        ]
        x = tf.pad(x, [[0, 0], *paddings, [0, 0]])
    delta = tf.reshape(delta, [shape[0], rows, columns, depth, multiplier])
    places = []
    for i in range(height):
        for j in range(width):
            part = x[
                :,
                i * rates[0] : i * rates[0] + strides[0] * (rows - 1) + 1 : strides[0],
                j * rates[1] : j * rates[1] + strides[1] * (columns - 1) + 1 : strides[1],
            ]
            places.append(tf.reduce_sum(part[..., None] * delta, [1, 2]))
    kernel = tf.reshape(tf.stack(places, 1), [shape[0], height, width, depth, multiplier])
    bias = tf.reshape(tf.reduce_sum(delta, [1, 2]), [shape[0], depth * multiplier])
    return [bias if v is layer.bias else kernel for v in weights]


def _padding(size, out, step, reach):
    total = tf.maximum((out - 1) * step + reach - size, 0)
    return [total // 2, total - total // 2]


def _by_differentiation(objective, site, delta, weights):
    """The same for any linear layer: its own gradient, example by example, vectorised."""

    def call(rows):
        return apply(site._replace(arguments=(*rows, *site.arguments[1:])))

    return _of_each(objective, weights, delta, [site.inputs], call)


def _of_own(objective, site, delta, weights):
    """The same of the call of an `Own`, in a kernel."""
    given = tf.nest.flatten(site.inputs)
    places = [i for i, t in enumerate(given) if own.has_examples(t)]
    masked = [i for i in places if _keras.mask_of(given[i]) is not None]
    last = tf.shape(delta)[0]

    def call(rows):
        alone = list(given)
        for i, row in zip(places, rows):
            alone[i] = row
        for i, mask in zip(masked, rows[len(places) :]):
            _keras.set_mask(alone[i], mask)
        return site.layer.call(tf.nest.pack_sequence_as(site.inputs, alone))

    # An input with other rows than δ is no example's, and the result not used: see `own.counts`.
    tensors = [given[i] for i in places] + [_keras.mask_of(given[i]) for i in masked]
    tensors = [tf.gather(t, tf.minimum(tf.range(last), tf.shape(t)[0] - 1)) for t in tensors]
    delta = tf.ensure_shape(delta, site.outputs.shape)
    try:
        with _keras.lock, quiet():
            return _of_each(objective, weights, delta, tensors, call, fallback=False)
    except Exception as error:  # Whatever a user's call does that cannot be vectorised.
        raise InnerCallError([site.layer.name]) from error


def _of_each(objective, weights, delta, tensors, call, fallback=True):
    """∂⟨f(aᵢ; w), δᵢ⟩/∂w, vectorised over the rows of δ and `tensors`.

    Args:
        call: f of a batch of one, from a list of the tensors' rows.
        fallback: whether what cannot be vectorised is done in a loop.
    """
    values = [tf.convert_to_tensor(v.value) for v in weights]

    def gradients_of(one):
        d, *rows = one
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            with objective.with_values(list(zip(weights, values))):
                y = call([row[None] for row in rows])
            pairing = tf.reduce_sum(y * tf.cast(d, y.dtype))
        found = tape.gradient(pairing, values, unconnected_gradients="zero")
        # Of rows that were looked up they are `IndexedSlices`, which a map warns of.
        return [tf.cast(tf.convert_to_tensor(g), objective.parameters.dtype) for g in found]

    return tf.vectorized_map(gradients_of, [delta, *tensors], fallback_to_while_loop=fallback)
