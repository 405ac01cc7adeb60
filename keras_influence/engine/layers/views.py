"""Layers seen as matrix products: z_t = Wᵀ a_t + bias at positions t, for each example.

Covered: Dense, EinsumDense (and so the projections of attention layers), Embedding, and as the
logits of its rows, convolutions in one, two or three dimensions without groups, and transposed ones.
"""

import string
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.steps import Steps
from keras_influence.engine.layers.tied import Reversed

layers = keras.layers
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
# Numbers in a patch up to which a convolution with unit vectors cuts it out sooner than TensorFlow's own
# operation: one to four times as fast, the fewer channels the faster (`benchmarks/patches.py`).
_FEW = 128


class View(NamedTuple):
    """One call of a layer as a matrix product.

    Attributes:
        kernel: the variable that holds W.
        order: its axes in the order (inputs..., outputs...).
        height: K, the product of its input axes.
        bias: the variable of the bias, or None.
        inputs: a, (b, T, K), or indices (b, T) that stand for unit vectors.
        flatten: brings a tensor shaped like the layer's output to (b, T, O).
        indices: whether the inputs are indices.
        turned: whether the layer multiplies by the transposed matrix: Σ_t a_t δ_tᵀ then has the
            inputs for its δ, and what comes back from the outputs for its a.
    """

    kernel: object
    order: tuple
    height: int
    bias: object
    inputs: tf.Tensor
    flatten: object
    indices: bool = False
    turned: bool = False

    def positions(self, parameters):
        """Positions in θ of W, (K, O), and of the bias, if it is in θ, as one more row."""
        kernel = parameters.positions(self.kernel).transpose(self.order).reshape(self.height, -1)
        if self.bias is None or parameters.index(self.bias) is None:
            return kernel
        return np.vstack([kernel, parameters.positions(self.bias).reshape(1, -1)])

    def signals(self, delta, height, spread=False):
        """a, with a one at the end if `height` is K + 1, for the bias, and δ (b, T, O).

        Indices stay what they are, unless they are to be `spread` to unit vectors.
        """
        a, delta = self.inputs, self.flatten(delta)
        if self.indices:
            return (tf.one_hot(a, height, dtype=delta.dtype) if spread else a), delta
        a = tf.cast(a, delta.dtype)
        if self.turned:
            return delta, a
        one = [[0, 0], [0, 0], [0, 1]]
        return (tf.pad(a, one, constant_values=1) if height > self.height else a), delta


def as_matrix(site):
    """The `View` of one call of a layer, or None where the layer is not covered.

    Args:
        site: a `sites.Site`.
    """
    read = _READERS.get(type(site.layer))
    return None if read is None else read(site.layer, site.inputs)


def input_rows(layer, x):
    """a with z = a W + bias, (b, T, K), for dense layers and convolutions; None for others.

    With groups each one multiplies its own part of K.
    """
    if isinstance(layer, layers.Dense):
        return _positions(x)
    if isinstance(layer, Steps):
        return _positions(layer.at_each(lambda t: _patches(layer.convolution, t), x))
    if not isinstance(layer, _CONVOLUTIONS) or layer.data_format != "channels_last":
        return None
    if layer.rank == 3 and set(layer.dilation_rate) != {1}:
        return None
    return _positions(_patches(layer, x))


def _product(layer, x):
    """Of a dense layer or a convolution, whose W is the kernel over the patches of the input."""
    rows = input_rows(layer, x)
    if rows is None or getattr(layer, "groups", 1) != 1:
        return None
    kernel = layer.kernel
    height = int(np.prod(kernel.shape[:-1]))
    return View(kernel, tuple(range(len(kernel.shape))), height, layer.bias, rows, _positions)


def _transposed(layer, x):
    """Of a transposed convolution, whose W maps an input position to a patch of the output."""
    if layer.data_format != "channels_last" or set(layer.dilation_rate) != {1}:
        return None
    kernel, rank = layer.kernel, layer.rank
    order = (rank + 1, *range(rank + 1))
    rows = _positions(x)
    return View(kernel, order, x.shape[-1], None, rows, lambda d: _positions(_patches(layer, d)))


def _embedding(layer, x):
    indices = tf.cast(tf.reshape(x, [tf.shape(x)[0], -1]), tf.int32)
    return View(layer.embeddings, (0, 1), layer.input_dim, None, indices, _positions, True)


def _reversed(layer, x):
    kernel, rows = layer.embeddings, _positions(x)
    return View(kernel, (0, 1), kernel.shape[0], None, rows, _positions, turned=True)


def _positions(tensor):
    """(b, ..., d) as (b, T, d)."""
    rows, *inner, width = tensor.shape
    count = int(np.prod(inner)) if None not in inner else -1
    return tf.reshape(tensor, [tf.shape(tensor)[0] if rows is None else rows, count, width])


def _patches(layer, x):
    """The part of the input that each output position sees, (b, positions..., K)."""
    padding = layer.padding
    if set(layer.kernel_size) == {1}:
        return x[(slice(None), *(slice(None, None, step) for step in layer.strides))]
    if padding == "causal":
        width = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        x, padding = tf.pad(x, [[0, 0], [width, 0], [0, 0]]), "valid"
    size, strides, rates = (
        [1, *(1 for _ in range(2 - layer.rank)), *spatial, 1]
        for spatial in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    if layer.rank == 3:
        return tf.extract_volume_patches(x, size, strides, padding.upper())
    images = x[:, None] if layer.rank == 1 else x
    numbers = int(np.prod(size)) * int(x.shape[-1])
    if numbers <= _FEW and set(rates) == {1} and x.dtype == tf.float32 and not _has_gpu():
        # The same numbers as the sum of themselves and zeros; a GPU may round what it multiplies.
        unit = tf.reshape(tf.eye(numbers), [*size[1:3], -1, numbers])
        return tf.nn.conv2d(images, unit, strides, padding.upper())
    return tf.image.extract_patches(images, size, strides, rates, padding.upper())


def _has_gpu():
    return bool(tf.config.list_physical_devices("GPU"))


def _einsum(layer, x):
    """W has the axes that the product sums over as inputs, its other ones as outputs."""
    axes = _einsum_axes(layer.equation, x.shape.rank)
    if axes is None:
        return None
    inputs, weights, outputs = axes
    contracted = [c for c in weights if c not in outputs]
    free = [c for c in outputs if c in weights]
    shared = [c for c in outputs[1:] if c not in weights]
    # A bias over other axes than the outputs of W is no row of W.
    bias = layer.bias if layer.bias is not None and set(layer.bias_axes) == set(free) else None

    def flat(tensor, letters, last):
        turned = tf.transpose(tensor, [letters.index(c) for c in [letters[0], *shared, *last]])
        shape = turned.shape[1 + len(shared) :]
        merged = tf.reshape(
            turned, tf.concat([tf.shape(turned)[: 1 + len(shared)], [int(np.prod(shape))]], 0)
        )
        merged.set_shape([*turned.shape[: 1 + len(shared)], int(np.prod(shape))])
        return _positions(merged)

    order = tuple(weights.index(c) for c in contracted + free)
    height = int(np.prod([layer.kernel.shape[weights.index(c)] for c in contracted]))
    return View(
        layer.kernel,
        order,
        height,
        bias,
        flat(x, inputs, contracted),
        lambda delta: flat(delta, outputs, free),
    )


def _einsum_axes(equation, rank):
    """The letters of inputs, weights and outputs; None unless it is a plain matrix product."""
    inputs, rest = equation.replace(" ", "").split(",")
    weights, outputs = rest.split("->")
    spare = [c for c in string.ascii_letters if c not in equation]
    dots = "".join(spare[: rank - len(inputs.replace("...", ""))])
    inputs, outputs = inputs.replace("...", dots), outputs.replace("...", dots)
    first = inputs[0] == outputs[0] and inputs[0] not in weights
    grouped = set(inputs) & set(weights) & set(outputs)
    lost = set(inputs) - set(weights) - set(outputs) or set(weights) - set(inputs) - set(outputs)
    repeated = any(len(set(part)) < len(part) for part in (inputs, weights, outputs))
    return (inputs, weights, outputs) if first and not (grouped or lost or repeated) else None


_READERS = {
    layers.Embedding: _embedding,
    Reversed: _reversed,
    layers.EinsumDense: _einsum,
    **dict.fromkeys((layers.Dense, Steps, *_CONVOLUTIONS), _product),
    **dict.fromkeys(_TRANSPOSED, _transposed),
}
