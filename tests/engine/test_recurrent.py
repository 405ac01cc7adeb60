"""Recurrent layers by their products, against gradients of single examples by plain tapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors.blocks import Block
from tests import truth

layers = keras.layers
N, STEPS = 8, 4


def _stacked(x):
    x = layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))(x)
    return layers.SimpleRNN(2, activation="relu", go_backwards=True)(x)


def _encoder(x):
    """The state at the end of one layer is where the next one begins."""
    x, *states = layers.LSTM(2, return_sequences=True, return_state=True)(x)
    return layers.LSTM(2, use_bias=False)(x, initial_state=states)


def _called_twice(x):
    layer = layers.SimpleRNN(3, return_sequences=True)
    return layers.Flatten()(layer(layer(x)))


def _convolved(x):
    """Masked steps, backwards, every second place; then the states alone."""
    rows = layers.Reshape((STEPS, 3, 1))(x)
    mask = x[..., 0] > 0
    rows = layers.ConvLSTM1D(2, 2, return_sequences=True, go_backwards=True)(rows, mask=mask)
    _, state, carry = layers.ConvLSTM1D(
        1, 2, strides=2, padding="same", use_bias=False, return_state=True
    )(rows)
    return layers.Flatten()(state + carry)


def _images(layer, *shape):
    return lambda x: layers.Flatten()(layer(layers.Reshape((STEPS, *shape))(x)))


# Network up to its scalar output, whether steps are masked, Kronecker factors of its layers.
NETWORKS = {
    "SimpleRNN": (lambda x: layers.SimpleRNN(3)(x), False, 2),
    "LSTM": (lambda x: layers.LSTM(3, implementation=1, go_backwards=True)(x), True, 2),
    "GRU": (lambda x: layers.GRU(3, recurrent_dropout=0.5)(x), False, 2),
    "stacked": (_stacked, True, 6),
    "ConvLSTM": (_images(layers.ConvLSTM2D(2, (1, 2), padding="same"), 1, 3, 1), False, 2),
}
LARGER = {
    "unrolled": (lambda x: layers.RNN(layers.LSTMCell(3), unroll=True)(x), False, 2),
    "Bidirectional GRU": (
        lambda x: layers.Bidirectional(layers.GRU(2, use_bias=False))(x),
        True,
        4,
    ),
    "encoder": (_encoder, True, 4),
    "called twice": (_called_twice, False, 2),
    "ConvLSTM over rows": (_convolved, False, 4),
    "ConvLSTM over volumes": (_images(layers.ConvLSTM3D(1, (1, 1, 2)), 1, 1, 3, 1), False, 2),
}


@keras.saving.register_keras_serializable("test_recurrent")
class Doubled(layers.SimpleRNNCell):
    """Not what Keras's cell computes."""

    def call(self, sequence, states, training=False):
        return super().call(2 * sequence, states, training=training)


# Network, and how many of its weights, the first ones, are in no block.
OUTSIDE = {
    "own cell": (lambda x: layers.RNN(Doubled(3))(x), 21),
    "frozen inputs": (lambda x: _without_inputs(layers.SimpleRNN(3), x), 9),
    "GRU that resets before": (lambda x: layers.GRU(2, reset_after=False)(x), 36),
}


def _without_inputs(layer, x):
    """Of an RNN over the data only the recurrent kernel is trained."""
    y = layer(x)
    cell = layer.cell
    cell.kernel.trainable = cell.bias.trainable = False
    return y


def _model(body, masked=False):
    inputs = keras.Input((STEPS, 3))
    hidden = layers.Masking()(inputs) if masked else inputs
    model = keras.Model(inputs, layers.Dense(1)(body(hidden)))
    model.compile("sgd", "mse")
    for v in model.trainable_variables:  # A bias of zero would hide mistakes.
        v.assign(v.numpy() + 0.1 * np.random.default_rng(1).normal(size=v.shape))
    return model


def _data(rng, masked=False):
    x = rng.normal(size=(N, STEPS, 3))
    if masked:
        x[::2, 1] = x[::3, 0] = x[1::4, -1] = 0
    return x, rng.normal(size=(N, 1)), rng.uniform(0.5, 2, N)


def _output_gradients(model, x):
    """The output of each example, (N,), and its gradient, (N, p)."""
    values, rows = [], []
    for one in x:
        with tf.GradientTape() as tape:
            value = model(one[None])[0, 0]
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([np.ravel(g) for g in found]))
        values.append(float(value))
    return np.array(values), np.array(rows)


def _second_moment(block, g):
    """The diagonal of a block of Σ gᵢ gᵢᵀ in its basis, or the blocks of its channels."""
    part = g[:, block.positions.array]
    if isinstance(block, Block):
        return np.sum((block.q_inputs.T @ part @ block.q_outputs) ** 2, 0)
    return np.einsum("nmv,nmw->mvw", part, part)


def _is_right(block, g):
    if isinstance(block, Block):
        return block.eigenvalues == pytest.approx(_second_moment(block, g), rel=1e-8, abs=1e-12)
    found = (block.vectors * block.eigenvalues[:, None]) @ np.swapaxes(block.vectors, 1, 2)
    return found == pytest.approx(_second_moment(block, g), rel=1e-8, abs=1e-12)


# Tracing the derivatives of several loops takes long.
@pytest.mark.slow_cases("stacked", *LARGER)
@pytest.mark.parametrize("case", (NETWORKS | LARGER).values(), ids=[*NETWORKS, *LARGER])
def test_blocks_and_gradients_are_those_of_single_examples(case, rng):
    body, masked, count = case
    model = _model(body, masked)
    x, y, w = _data(rng, masked)
    values, g = _output_gradients(model, x)
    problem = Problem(model, (x, y, w), batch_size=5)
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    assert sum(isinstance(block, Block) for block in blocks) == count + 1
    assert not any(getattr(block, "outside", False) for block in blocks)
    covered = np.concatenate([block.positions.array.ravel() for block in blocks])
    assert sorted(covered) == list(range(g.shape[1]))
    # (ŷ - y)² has the second derivative 2: the Gauss-Newton matrix is Σ 2 wᵢ gᵢ gᵢᵀ / n.
    assert all(_is_right(block, g * np.sqrt(2 * w / N)[:, None]) for block in blocks)
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert scorer.fast
    assert truth.relative_error(found, g * (2 * w * (values - y[:, 0]))[:, None]) < 1e-10


@pytest.mark.parametrize("name", OUTSIDE)
def test_others_have_their_diagonal_and_take_the_plain_path(name, rng):
    body, outside = OUTSIDE[name]
    model = _model(body)
    x, y, w = _data(rng)
    values, g = _output_gradients(model, x)
    problem = Problem(model, (x, y, w), batch_size=N)
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    rest = [block for block in blocks if getattr(block, "outside", False)]
    assert [list(block.positions.array.ravel()) for block in rest] == [list(range(outside))]
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert not scorer.fast
    assert truth.relative_error(found, g * (2 * w * (values - y[:, 0]))[:, None]) < 1e-10


@pytest.mark.slow
def test_the_layer_is_as_before(rng):
    """Its call, its cell's weights, and the random state."""
    model = _model(lambda x: layers.SimpleRNN(3, dropout=0.2, seed=1)(x))
    x, y, w = _data(rng)
    layer, before = model.layers[1], model.predict(x, verbose=0)
    own, inner = dict(vars(layer)), dict(vars(layer.cell))
    state = layer.cell.seed_generator.state.numpy()
    problem = Problem(model, (x, y, w))
    problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    assert vars(layer).keys() == own.keys() and vars(layer.cell).keys() == inner.keys()
    assert all(vars(layer.cell)[key] is value for key, value in inner.items())
    assert (layer.cell.seed_generator.state.numpy() == state).all()
    assert (model.predict(x, verbose=0) == before).all()
