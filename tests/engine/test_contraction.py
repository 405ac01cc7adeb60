"""The contraction of layer inputs with output gradients: against loops over examples, and
against the plain path. Every model says whether it should be contracted at all."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.layers import contraction
from keras_influence.engine.layers.pseudo import pseudo_signals
from keras_influence.engine.layers.sites import known_layers, signals
from keras_influence.engine.problem import Problem
from tests import truth
from tests.conftest import set_precision
from tests.pool import pooled

pytestmark = pytest.mark.usefixtures("scores_by_their_kernel")
layers = keras.layers
regularizers = keras.regularizers
N = 6


def _images(*stack):
    return (6, 6, 2), [*stack, layers.Flatten()]


CONTRACTED = {
    "regularisers": lambda: (
        (5,),
        [
            layers.Dense(
                *(4, "tanh"),
                kernel_regularizer=regularizers.L2(0.5),
                # Not "l1": up to Keras 3.10 that is of float32 in any model.
                bias_regularizer=regularizers.L1L2(l1=0.01),
            ),
            layers.Dense(4, "gelu"),
        ],
    ),
    "time steps": lambda: (
        (4, 3),
        [layers.Dense(3, "tanh"), layers.LayerNormalization(), layers.Flatten()],
    ),
    "same": lambda: _images(layers.Conv2D(3, 3, padding="same", activation="softplus")),
    "strides": lambda: _images(layers.Conv2D(3, 2, strides=2, padding="same", use_bias=False)),
    "dilation": lambda: _images(layers.Conv2D(3, 2, dilation_rate=2, activation="tanh")),
    "groups": lambda: _images(layers.Conv2D(4, 3, groups=2)),
    "causal": lambda: ((5, 2), [layers.Conv1D(3, 2, padding="causal"), layers.Flatten()]),
    "transposed": lambda: _images(layers.Conv2DTranspose(2, 2, strides=2)),
    "depthwise": lambda: _images(layers.DepthwiseConv2D(3, activation="gelu")),
    "separable": lambda: _images(
        layers.SeparableConv2D(3, 3, depth_multiplier=2, padding="same", activation="gelu"),
        layers.SeparableConv2D(2, 2, strides=2, use_bias=False),
    ),
    "normalisation": lambda: _images(layers.Conv2D(4, 3), layers.BatchNormalization()),
    "dropout": lambda: ((5,), [layers.Dense(4, "tanh"), layers.Dropout(0.5)]),
    **{
        f"positions {how}": lambda how=how: _positions(how)
        for how in ("added", "in front", "copied")
    },
    "own class": lambda: ((5,), [Doubled(4), layers.Dense(3)]),
    "activation layer": lambda: ((5,), [layers.Dense(4, activation=layers.LeakyReLU(0.3))]),
}
PLAIN = {
    "recurrent": lambda: ((4, 3), [layers.GRU(3, reset_after=False)]),
    "positions used twice": lambda: _positions("twice"),
    "positions cut": lambda: _positions("cut"),
}


class Positions(layers.Layer):
    """An embedding that is called once for all examples, in the ways that people write it."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def build(self, shape):
        self.embedding = layers.Embedding(shape[1], shape[2])
        self.embedding.build(None)

    def call(self, x):
        places = keras.ops.arange(x.shape[1])
        if self.how == "in front":
            return self.embedding(places[None]) + x
        e = self.embedding(places)
        if self.how == "added":
            return x + e
        if self.how == "copied":
            return x * keras.ops.broadcast_to(e, keras.ops.shape(x))
        return x * e + e if self.how == "twice" else x + e[:1]


def _positions(how):
    return (4, 3), [
        layers.Dense(3, "tanh"),
        Positions(how),
        layers.Dense(2, "tanh"),
        layers.Flatten(),
    ]


class Folded(layers.Layer):
    """Every layer of the model sees two rows of each example."""

    def build(self, shape):
        self.inner, self.logits = layers.Dense(3, "tanh"), layers.Dense(3)
        self.inner.build((None, 6))
        self.logits.build((None, 3))

    def call(self, x):
        z = self.logits(self.inner(keras.ops.reshape(x, (-1, 6))))
        return keras.ops.sum(keras.ops.reshape(z, (-1, 2, 3)), axis=1)


class Doubled(layers.Dense):
    """Not linear in its kernel."""

    def call(self, inputs):
        return super().call(super().call(inputs)[:, :1] * inputs)


class Penalised(layers.Layer):
    """Adds a mean over the batch. (An activity regulariser is a sum up to Keras 3.13.)"""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.sum(inputs**2, axis=-1)))
        return inputs


def _model(shape, stack, classes=3):
    inputs = keras.Input(shape)
    hidden = inputs
    for layer in stack:
        hidden = layer(hidden)
    model = keras.Model(inputs, layers.Dense(classes, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    for v in model.trainable_variables:  # A bias of zero would hide mistakes.
        v.assign(v.numpy() + 0.1 * np.random.default_rng(1).normal(size=v.shape))
    return model


@pooled
def _contracted(name):
    return _model(*CONTRACTED[name]())


def _data(model, rng):
    shape = model.input_shape[1:]
    return rng.normal(size=(N, *shape)), rng.integers(0, 3, N)


def _example_gradients(model, x, y, weights=None):
    """∇ℓ of each example by itself, from Keras's own loss less its value at weight zero."""
    weights = np.ones(N) if weights is None else weights
    return np.array(
        [
            truth.gradient(model, x[[i]], y[[i]], sample_weight=weights[[i]])
            - truth.gradient(model, x[[i]], y[[i]], sample_weight=np.zeros(1))
            for i in range(N)
        ]
    )


def _check(model, train, g, contracted, tolerance=1e-8, times=1, **options):
    """Gradients of examples are `g`, and scores against one and three of them are g gᵀ / n."""
    problem = Problem(model, train, batch_size=4, **options)
    scorer = problem.scorer(problem.facts.own(), "train")
    for batch in problem.train:
        scorer.gradients(batch)
    assert scorer.fast == contracted
    assert truth.relative_error(problem.example_gradients(problem.train), g) < tolerance
    for rows in (1, 3):
        expected = times * g[:rows] @ g.T / N
        assert truth.relative_error(problem.scores(g[:rows]), expected) < tolerance


@pytest.mark.parametrize("name", CONTRACTED)
def test_contraction_agrees_with_a_loop_over_examples(name, rng):
    model = _contracted(name)
    x, y = _data(model, rng)
    _check(model, (x, y), _example_gradients(model, x, y), contracted=True)


@pytest.mark.slow_cases("recurrent", "positions cut")
@pytest.mark.parametrize("name", PLAIN)
def test_other_layers_take_the_plain_path(name, rng):
    model = _model(*PLAIN[name]())
    x, y = _data(model, rng)
    _check(model, (x, y), _example_gradients(model, x, y), contracted=False)


def test_where_all_layers_see_other_rows_than_examples(rng):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Softmax()(Folded()(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = _data(model, rng)
    _check(model, (x, y), _example_gradients(model, x, y), contracted=False)


def test_sample_weights_are_in_the_contraction(rng):
    model = _contracted("regularisers")
    x, y = _data(model, rng)
    w = rng.uniform(0.5, 2, N)
    _check(model, (x, y, w), _example_gradients(model, x, y, w), contracted=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_what_a_layer_adds_for_an_example_is_part_of_it(rng, weighted):
    """By Keras: the gradient of the example's whole loss by itself, less the weights' regulariser."""
    l2 = 0.5
    stack = [
        layers.Dense(4, "tanh", kernel_regularizer=regularizers.L2(l2)),
        layers.Dense(4, "gelu"),
        Penalised(),
    ]
    model = _model((5,), stack)
    x, y = _data(model, rng)
    w = rng.uniform(0.5, 2, N) if weighted else np.ones(N)
    g = np.array([truth.gradient(model, x[[i]], y[[i]], sample_weight=w[[i]]) for i in range(N)])
    kernel = model.layers[1].kernel.numpy()
    g[:, : kernel.size] -= 2 * l2 * kernel.ravel()
    _check(model, (x, y, w) if weighted else (x, y), g, contracted=False)


def test_a_summed_loss_is_contracted_as_a_sum(rng):
    model = _contracted("dilation")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    x, y = _data(model, rng)
    # The objective is n times larger, so a score is not divided by n.
    _check(model, (x, y), _example_gradients(model, x, y), contracted=True, times=N)


def test_a_part_of_a_layer_can_be_theta(rng):
    model = _contracted("same")
    x, y = _data(model, rng)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    keep = np.concatenate(
        [np.full(int(np.prod(v.shape)), v.name == "kernel") for v in model.trainable_variables]
    )
    g = _example_gradients(model, x, y)[:, keep]
    _check(model, (x, y), g, contracted=True, variables=kernels)


def _token_model(shared=False, tied=False):
    inputs = keras.Input((4,))
    embedding = layers.Embedding(7, 3)
    h = embedding(inputs)
    attended = layers.MultiHeadAttention(1, 3)(h, h)
    dense = layers.Dense(3, "tanh")
    h = dense(dense(attended)) if shared else dense(attended)
    h = layers.GlobalAveragePooling1D()(h)
    if tied:
        outputs = layers.Lambda(lambda t: t @ keras.ops.transpose(embedding.embeddings))(h)
    else:
        outputs = layers.Dense(3)(h)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("shared", [False, True])
def test_attention_embeddings_and_shared_layers(shared, rng):
    model = _token_model(shared)
    train = rng.integers(0, 7, (N, 4)), rng.integers(0, 3, N)
    _check(model, train, _example_gradients(model, *train), contracted=True)


def test_a_weight_that_is_also_used_elsewhere_is_noticed(rng):
    model = _token_model(tied=True)
    train = rng.integers(0, 7, (N, 4)), rng.integers(0, 3, N)
    _check(model, train, _example_gradients(model, *train), contracted=False)


class Gated(keras.Model):
    """Multiplies by a layer's kernel once more where the first input is above 2."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = layers.Dense(3, "tanh"), layers.Dense(3, "softmax")

    def call(self, x):
        gate = keras.ops.cast(x[:, :1] > 2, x.dtype)
        return self.last(self.inner(x) + gate * keras.ops.matmul(x, self.inner.kernel))


def test_another_use_that_few_examples_make_is_noticed(rng):
    """What is certified of a batch is a part of it."""
    model, x = Gated(), rng.uniform(-1, 1, (128, 4))
    x[41, 0] = 3.0
    y = rng.integers(0, 3, 128)
    model(x)
    model.compile("sgd", "sparse_categorical_crossentropy")
    problem = Problem(model, (x, y), batch_size=128)
    found = problem.example_gradients(problem.train)[41]
    assert truth.relative_error(found, truth.gradient(model, x[[41]], y[[41]])) < 1e-8


@pytest.mark.parametrize("single", [True, False])
def test_a_layer_with_small_gradients_is_certified_too(rng, monkeypatch, single):
    """Beside an input of another size the contraction of its layer may be wrong in all its digits."""
    set_precision("float32" if single else "float64")
    inputs = keras.Input((4,))
    small = layers.Dense(3, "tanh", name="small")(inputs[:, 1:])
    model = keras.Model(inputs, layers.Dense(1)(small) + layers.Dense(1)(inputs[:, :1]))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(N, 4)) * [3000.0, 1, 1, 1], rng.normal(size=(N, 1))
    right = contraction.weight_gradients

    def doubled(objective, site, delta, weights):
        factor = 2.0 if site.layer.name == "small" else 1.0
        return [factor * g for g in right(objective, site, delta, weights)]

    monkeypatch.setattr(contraction, "weight_gradients", doubled)
    problem = Problem(model, (x, y))
    found = problem.example_gradients(problem.train)
    for i in range(N):
        expected = truth.gradient(model, x[[i]], y[[i]])
        for place, part in enumerate(np.split(found[i], np.cumsum(problem.parameters.sizes)[:-1])):
            mine = np.split(expected, np.cumsum(problem.parameters.sizes)[:-1])[place]
            assert truth.relative_error(part, mine) < (1e-4 if single else 1e-8)


def test_a_batch_axis_folded_into_another_is_noticed(rng):
    inputs = keras.Input((4, 3))
    flat = keras.ops.reshape(inputs, (-1, 3))
    hidden = keras.ops.reshape(layers.Dense(2, "tanh")(flat), (-1, 8))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    train = _data(model, rng)
    _check(model, train, _example_gradients(model, *train), contracted=False)


def test_several_outputs(rng):
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, "tanh")(inputs)
    outputs = [layers.Dense(3, "softmax")(hidden), layers.Dense(1)(hidden)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", ["sparse_categorical_crossentropy", "mse"], loss_weights=[1.0, 0.25])
    x, y = rng.normal(size=(N, 4)), [rng.integers(0, 3, N), rng.normal(size=(N, 1))]

    def loss_of(i, kind):
        z = model(x[[i]])[kind]
        if kind == 0:
            return -tf.math.log(z[0, y[0][i]])
        return 0.25 * tf.reduce_sum((z - y[1][[i]]) ** 2)

    g = []
    for i in range(N):
        with tf.GradientTape() as tape:
            loss = loss_of(i, 0) + loss_of(i, 1)
        parts = tape.gradient(loss, [v.value for v in model.trainable_variables])
        g.append(np.concatenate([p.numpy().ravel() for p in parts]))
    _check(model, (x, y), np.array(g), contracted=True)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_lower_precisions_are_contracted_in_float32(policy, rng):
    weights = _contracted("same").get_weights()
    x, y = _data(_contracted("same"), rng)
    model = _contracted("same")
    model.set_weights([w.astype("float32") for w in weights])
    g = _example_gradients(model, x.astype("float32"), y)
    set_precision("float32")
    keras.config.set_dtype_policy(policy)
    low = _contracted("same")
    low.set_weights(weights)
    _check(low, (x, y), g, contracted=True, tolerance=1e-4)


def test_layers_are_as_before_also_after_an_error(rng):
    model = _contracted("same")
    before = [dict(vars(layer)) for layer in model.layers]
    problem = Problem(model, _data(model, rng))
    batch = next(iter(problem.train))
    problem.scores(np.ones((1, problem.parameters.size)))
    with pytest.raises(ValueError):
        signals(
            problem.objective,
            known_layers(model, model.trainable_variables),
            (batch[0][..., :1], batch[1]),
            problem.facts.own(),
        )
    after = [dict(vars(layer)) for layer in model.layers]
    assert [list(b) for b in before] == [list(a) for a in after]
    assert all(
        b[k] is a[k] for b, a in zip(before, after) for k in ("activation", "_kernel") if k in b
    )
    assert not any("call" in vars(layer) for layer in model.layers)


def test_random_signals_have_the_gauss_newton_matrix_as_second_moment(rng):
    """For the last layer, whose Gauss-Newton block is known in closed form."""
    model = truth.softmax_model(3, 3)
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    expected = truth.SoftmaxRegression(x, y, 3, 0).hessian(truth.get_flat(model))
    problem = Problem(model, (x, y))
    batch = next(iter(problem.train))
    dense = known_layers(model, model.trainable_variables)

    def draw(seed):
        about = problem.objective, dense, batch, problem.facts.own(), seed
        found = pseudo_signals(*about, ("softmax",))
        return found.sites[0].inputs, found.deltas[0]

    draws = 2000
    seeds = tf.constant([[i, 7] for i in range(draws)])
    a, delta = tf.function(lambda: tf.map_fn(draw, seeds, (tf.float64, tf.float64)))()
    rows = np.concatenate([np.einsum("dbi,dbo->dbio", a, delta).reshape(draws, 5, -1), delta], 2)
    second = np.einsum("dbp,dbq->pq", rows, rows, optimize=True) / (5 * draws)
    assert truth.relative_error(second, expected) < 0.05
