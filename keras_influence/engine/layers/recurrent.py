"""A recurrent layer as the products that it is made of, each linear in its own weights.

At step t a cell computes z_t = x_t W + h_{t-1} U + b and goes on with z_t alone. So the layer is
a dense layer over its inputs, which is called before the loop, and a loop that is given z; in it
a second dense layer sees the states h_{t-1}, and the gradient at its output is that at z:

    ∂ℓ/∂W = Σ_t x_t δ_tᵀ        ∂ℓ/∂U = Σ_t h_{t-1} δ_tᵀ        δ_t = ∂ℓ/∂z_t

The loop is Keras's own, with its own cell: z stands where the cell adds the bias, its kernel
is empty, and it gives h_{t-1} besides its output.

The products of a convolutional LSTM are convolutions, at each step.

A GRU adds b and b' to the two products, and its reset gate r_t multiplies the second one in the
candidate, h_{t-1} U + b'. There δ is another one, and the loop is given zeros in its place too.
"""

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.layers.steps import Steps

layers = keras.layers
_LAYERS = (layers.RNN, layers.SimpleRNN, layers.LSTM, layers.GRU)
_CONVOLVED = {
    layers.ConvLSTM1D: layers.Conv1D,
    layers.ConvLSTM2D: layers.Conv2D,
    layers.ConvLSTM3D: layers.Conv3D,
}
_CELLS = (layers.SimpleRNNCell, layers.LSTMCell)


class Offsets(layers.Layer):
    """The biases of two products of the same inputs, (2, units), each for its own."""

    def __init__(self, bias, **options):
        super().__init__(**options)
        self.bias, self.built = bias, True

    def call(self, products):
        """The biases alone, in the shape of the products (b, T, 2, units)."""
        return tf.zeros_like(products) + self.bias


def covers(layer):
    """Whether a layer is one, of Keras's own cells and without a memory between batches."""
    if type(layer) in _CONVOLVED:
        dilated = layer.cell.rank == 3 and set(layer.dilation_rate) != {1}
        return not (layer.stateful or dilated) and layer.data_format == "channels_last"
    if type(layer) not in _LAYERS or layer.stateful:
        return False
    return type(layer.cell) in _CELLS or _has_two_products(layer.cell)


def _has_two_products(cell):
    return type(cell) is layers.GRUCell and cell.reset_after


def made(layer):
    """The dense layers of inputs and states, which hold the very variables of the cell.

    Or their convolutions; and the `Offsets` of a cell with two biases.
    """
    cell, name, dtype = layer.cell, layer.name, layer.dtype_policy
    if type(layer) in _CONVOLVED:
        of_inputs = {n: getattr(cell, n) for n in ("strides", "padding", "dilation_rate")}
        return (
            _convolution(layer, f"{name}_inputs", cell.kernel, cell.bias, of_inputs),
            _convolution(layer, f"{name}_states", cell.recurrent_kernel, None, {"padding": "same"}),
        )
    two = _has_two_products(cell)
    dense = (
        _dense(f"{name}_inputs", cell.kernel, None if two else cell.bias, dtype),
        _dense(f"{name}_states", cell.recurrent_kernel, None, dtype),
    )
    if not two or cell.bias is None:
        return dense
    return (*dense, Offsets(cell.bias, dtype=dtype, name=f"{name}_biases"))


def _dense(name, kernel, bias, dtype):
    dense = layers.Dense(
        kernel.shape[-1],
        use_bias=bias is not None,
        kernel_initializer="zeros",
        dtype=dtype,
        name=name,
    )
    return _keras.holding(dense, kernel, bias)


def _convolution(layer, name, kernel, bias, options):
    made_of = _CONVOLVED[type(layer)]
    convolution = made_of(
        kernel.shape[-1],
        layer.kernel_size,
        use_bias=bias is not None,
        data_format="channels_last",
        dtype=layer.dtype_policy,
        **options,
    )
    return Steps(_keras.holding(convolution, kernel, bias), dtype=layer.dtype_policy, name=name)


def called(layer, pieces, see):
    """Its call by its pieces."""
    of_inputs, of_states, *offsets = pieces
    plain, cell = layer.call, layer.cell
    # A call that somebody put in place of the class's does something else.
    is_own = "call" in vars(layer) or "call" in vars(cell)

    def by_pieces(sequences, initial_state=None, mask=None, training=False):
        if is_own or (training and (cell.dropout or cell.recurrent_dropout)):
            return plain(sequences, initial_state, mask, training)
        z = of_states_z = of_inputs.call(sequences)
        if _has_two_products(cell):
            # A product with zero, so that a tape follows it where only its gradient is wanted.
            z = tf.stack([z, 0 * z], 2)
            z = z + offsets[0].call(z) if offsets else z
            z, of_states_z = tf.unstack(z, axis=2)
            z = tf.concat([z, of_states_z], -1)
        loop = _shadow(layer, cell=_Step(cell), return_sequences=True, use_cudnn=False)
        found = tf.nest.flatten(loop.call(z, initial_state=initial_state, mask=mask))
        outputs, before = tf.split(found[0], 2, axis=-1)
        see(of_states, tf.reverse(before, [1]) if layer.go_backwards else before, of_states_z)
        found[0] = outputs if layer.return_sequences else outputs[:, -1]
        return tuple(found) if layer.return_state else found[0]

    return by_pieces


class _Step:
    """A cell whose input is z, and whose output has the state before it at its end."""

    def __init__(self, cell):
        self._cell = cell
        self.state_size, self.compute_dtype = cell.state_size, cell.compute_dtype
        self.get_initial_state = cell.get_initial_state

    def __call__(self, z, states):
        output, after = self._after(z, states)
        return tf.concat([output, states[0]], -1), after

    def _after(self, z, states):
        if hasattr(self._cell, "input_conv"):
            # Of the kernel each gate has its part, as it has of z.
            given = {"kernel": z, "use_bias": False, "input_conv": lambda x, part, *_, **__: part}
            return _shadow(self._cell, **given).call(z, states)
        bias = tf.stack(tf.split(z, 2, -1)) if _has_two_products(self._cell) else z
        empty = tf.zeros((0, bias.shape[-1]), z.dtype)
        cell = _shadow(self._cell, kernel=empty, bias=bias, use_bias=True, implementation=2)
        return cell.call(z[:, :0], states)


def _shadow(of, **attributes):
    """The same object, with its very variables, but for some attributes."""
    shadow = object.__new__(type(of))
    vars(shadow).update(vars(of))
    # In place of it is meanwhile the very call that makes this one.
    vars(shadow).pop("call", None)
    vars(shadow).update(attributes)
    return shadow
