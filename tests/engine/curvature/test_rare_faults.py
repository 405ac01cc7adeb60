"""Wrong derivatives for few examples, none of which is among those that are looked at first."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.curvature import certificate
from tests import truth

layers, ops = keras.layers, keras.ops
BOTH = ["hessian", "gauss_newton"]
# From here on an example is of the rare kind.
RARE = 3.0


def rows(rng, n=400, count=8):
    """Rows of which `count` are of the rare kind, by their first number, and not among the first looks."""
    x = rng.normal(size=(n, 6))
    x[:, 0] = np.clip(x[:, 0], -2, 2)
    others = np.setdiff1d(np.arange(n), np.linspace(0, n - 1, 8).astype(int))
    x[rng.choice(others, count, replace=False), 0] = 3.5
    return x


@tf.custom_gradient
def stopped(t):
    """The square, with a gradient whose own gradient is zero."""
    return t**2, lambda upstream: 2 * upstream * tf.stop_gradient(t)


@tf.custom_gradient
def detached(t):
    """The identity, whose gradient passes on no derivative of what comes from above."""
    return tf.identity(t), tf.stop_gradient


class Rarely(layers.Layer):
    """One function of the examples, and for the rare ones of them another that has the same values."""

    def __init__(self, plain, rare, **options):
        super().__init__(**options)
        self.plain, self.rare = plain, rare

    def call(self, t, x):
        return tf.where(x[:, :1] > RARE, self.rare(t), self.plain(t))


def steep(t):
    """A tanh that beyond 2 has a gradient whose own gradient is zero."""

    @tf.custom_gradient
    def found(t):
        def gradient(upstream):
            slope = 1 - tf.tanh(t) ** 2
            return upstream * tf.where(t > 2, tf.stop_gradient(slope), slope)

        return tf.tanh(t), gradient

    return found(t)


class Whole(keras.Model):
    """A model that is one piece of code."""

    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4), layers.Dense(3, "softmax")

    def call(self, x):
        t = self.first(x)
        return self.last(tf.where(x[:, :1] > RARE, stopped(t), t**2))


def squares(y, z):
    """Squares, whose slope does not know its own slope for labels of the rare kind."""

    @tf.custom_gradient
    def found(t):
        where = y[:, :1] > RARE
        return t**2, lambda upstream: 2 * upstream * tf.where(where, tf.stop_gradient(t), t)

    return ops.mean(found(z - y), -1)


def network(kind, loss="sparse_categorical_crossentropy"):
    """A network with a fault, or one with none that does the same."""
    x = keras.Input((6,))
    t = layers.Dense(4, steep if kind == "activation" else "tanh")(x)
    pair = {
        "stopped": (tf.square, stopped),
        "detached": (tf.identity, detached),
        "no gradient": (tf.identity, tf.stop_gradient),
        "none": (tf.identity, tf.identity),
    }
    t = Rarely(*pair.get(kind, pair["none"]), name="rarely")(t, x)
    last = layers.Dense(2 if loss is squares else 3, None if loss is squares else "softmax")
    model = Whole() if kind == "whole" else keras.Model(x, last(t))
    if kind == "whole":
        model(np.zeros((2, 6)))
    model.compile("sgd", loss)
    return model


def asked(model, x, y, curvature, batch_size=None):
    data = (x, y) if batch_size is None else tf.data.Dataset.from_tensor_slices((x, y))
    data = data if batch_size is None else data.batch(batch_size)
    vector = np.random.default_rng(0).normal(size=model.count_params())
    return ki.hvp(model, vector, data, curvature=curvature), vector


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "kind, curvature, where",
    [
        ("stopped", "hessian", "layer .*rarely"),
        ("detached", "hessian", "layer .*rarely"),
        ("detached", "gauss_newton", "layer .*rarely"),
        ("no gradient", "hessian", "layer .*rarely"),
        ("activation", "hessian", "layer .*dense"),
        ("whole", "hessian", "layer whole"),
    ],
)
def test_a_layer_that_is_wrong_for_few_examples_is_named(kind, curvature, where, precision, rng):
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    x = rows(rng)
    model = network(kind)
    if kind == "activation":  # So that the rare ones, and no others, are where it is wrong.
        kernel, bias = np.zeros((6, 4)), np.zeros(4)
        kernel[0], kernel[1:] = 0.7, rng.normal(size=(5, 4)) * 0.01
        model.layers[1].set_weights([kernel, bias])
    with pytest.raises(ValueError, match=f"wrong second derivative.*It is in the {where}"):
        asked(model, x, rng.integers(0, 3, len(x)), curvature)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_loss_that_is_wrong_for_few_examples_is_refused(batch_size, rng):
    """Or where its Gauss-Newton matrix is that of a loss which holds for constant what is stopped, warned of."""
    x = rows(rng)
    y = np.c_[x[:, 0], rng.normal(size=len(x))]
    with pytest.raises(ValueError, match="It is in the loss. Write the loss without it.*TracIn"):
        asked(network("none", squares), x, y, "hessian", batch_size)
    with pytest.warns(ki.CurvatureWarning, match="stop_gradient"):
        asked(network("none", squares), x, y, "gauss_newton", batch_size)


class Crossed(layers.Layer):
    """What takes two tensors, as attention or a cross network's layer."""

    def call(self, pair):
        a, b = pair
        return a * ops.tanh(b) + b


def test_a_layer_that_is_given_one_tensor_twice_is_believed(float64, rng):
    x, y = rows(rng, 40), rng.integers(0, 3, 40)
    inputs = keras.Input((6,))
    t = layers.Dense(4, "tanh")(inputs)
    model = keras.Model(inputs, layers.Dense(3, "softmax")(Crossed()([t, t])))
    model.compile("sgd", "sparse_categorical_crossentropy")
    found, vector = asked(model, x, y, "hessian")
    assert truth.relative_error(found, truth.finite_difference_hvp(model, x, y, vector)) < 1e-6


@pytest.mark.parametrize("curvature", BOTH)
def test_what_is_right_for_all_examples_is_believed(curvature, float64, rng):
    """Also beside kinks, where the slope alone is another's for some."""
    x, y = rows(rng), rng.integers(0, 3, 400)
    model = network("none")
    found, vector = asked(model, x, y, curvature)
    if curvature == "hessian":
        assert truth.relative_error(found, truth.finite_difference_hvp(model, x, y, vector)) < 1e-6
    kinked = keras.Sequential([keras.Input((6,)), layers.Dense(20, ops.relu), layers.Dense(3)])
    kinked.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.any(asked(kinked, x, y, curvature)[0])


def binary(y, z):
    """Binary cross-entropy as it stands in many scripts."""
    p = ops.clip(ops.sigmoid(z), 1e-7, 1 - 1e-7)
    return -ops.mean(y * ops.log(p) + (1 - y) * ops.log(1 - p), -1)


def squashed(t):
    return ops.tanh(t)


@pytest.mark.parametrize("curvature", BOTH)
@pytest.mark.parametrize("kind", ["loss", "activation"])
@pytest.mark.filterwarnings("error::keras_influence.CurvatureWarning")
def test_what_is_saturated_is_believed(kind, curvature, rng):
    """There slopes are rounding: a sigmoid is 1 to the last digit, and its differences are 0."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    inputs = keras.Input((6,))
    t = layers.Dense(1)(inputs)
    if kind == "activation":
        t = layers.Dense(1)(layers.Dense(1, squashed, kernel_initializer="ones")(t))
    model = keras.Model(inputs, t)
    own = kind == "loss"
    model.compile("sgd", binary if own else keras.losses.BinaryCrossentropy(from_logits=True))
    model.layers[1].kernel.assign(np.full((6, 1), 4.0))
    x = rng.normal(size=(2000, 6))
    y = np.float32(model(x) > 0) if own else rng.integers(0, 2, (2000, 1))
    assert np.any(asked(model, x, y, curvature)[0])


def test_a_loss_from_no_module_is_taken(rng):
    space = {"ops": ops}
    exec("def loss(y, z): return ops.mean((y - z) ** 2, -1)", space)  # Its `__module__` is None.
    model = network("none", space["loss"])
    y = rng.normal(size=(400, 3))
    assert np.any(asked(model, rows(rng), y, "gauss_newton")[0])


class Rectified(layers.Layer):
    """A dense layer of the user's own, with a kink."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 64))

    def call(self, x):
        return ops.relu(x @ self.kernel)


@pytest.mark.parametrize("curvature", BOTH)
def test_many_kinks_are_no_fault(curvature, rng):
    """Of a hundred thousand numbers some are as near to their kink as a difference can tell."""
    inputs = keras.Input((6,))
    hidden = Rectified()(Rectified()(inputs))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    found, vector = asked(model, rng.normal(size=(4000, 6)), rng.integers(0, 3, 4000), curvature)
    assert np.any(found)


class Choosy(Rectified):
    """Takes the rows that the model gives it, and no others."""

    def call(self, x):
        tf.debugging.assert_equal(x, tf.round(x))
        return super().call(x)


@pytest.mark.parametrize("curvature", BOTH)
@pytest.mark.parametrize("kind", ["choosy", "half"])
def test_what_cannot_be_asked_is_believed(kind, curvature, rng):
    """A layer that refuses other inputs; numbers with few digits."""
    inputs = keras.Input((6,))
    layer = Choosy() if kind == "choosy" else Rectified(dtype="float16" if kind == "half" else None)
    model = keras.Model(inputs, layers.Dense(3, "softmax", dtype="float32")(layer(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = np.round(rng.normal(size=(400, 6))), rng.integers(0, 3, 400)
    assert np.any(asked(model, x, y, curvature)[0])


class Rounded(layers.Layer):
    """Rounds, with the gradient of what it is given."""

    def call(self, x):
        return x + ops.stop_gradient(ops.round(x) - x)


@pytest.mark.parametrize("curvature", BOTH)
def test_a_layer_may_be_wrong_in_the_data(curvature, rng):
    """No gradient of the weights depends on the derivatives in what does not depend on them."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(Rounded()(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    found, vector = asked(model, rows(rng), rng.integers(0, 3, 400), curvature)
    assert np.any(found)


class Masked(layers.Layer):
    """The mean of what is left of the steps; the square of the others goes nowhere."""

    def call(self, t, x):
        left = ops.cast(ops.abs(x[..., :1]) > 0, t.dtype)
        return ops.sum(Masked.piece(t) * left, 1) / ops.sum(left, 1)

    @staticmethod
    def piece(t):
        return t


class Padded(layers.Layer):
    """Wrong for steps that are padded."""

    def call(self, t, x):
        return tf.where(tf.abs(x[..., :1]) > 0, t**2, stopped(t))


@pytest.mark.parametrize("leaves_out", [True, False])
def test_steps_count_where_no_mask_leaves_them_out(leaves_out, rng):
    inputs = keras.Input((5, 6))
    t = Padded(name="padded")(layers.Dense(4, "tanh")(inputs), inputs)
    t = Masked()(t, inputs) if leaves_out else layers.GlobalAveragePooling1D()(t)
    model = keras.Model(inputs, layers.Dense(3, "softmax")(t))
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.layers[1].bias.assign(np.full(4, 0.3))
    x = rng.normal(size=(400, 5, 6))
    x[rng.choice(np.setdiff1d(np.arange(400), np.linspace(0, 399, 8).astype(int)), 8), 3:] = 0
    y = rng.integers(0, 3, 400)
    if leaves_out:
        assert np.any(asked(model, x, y, "hessian")[0])
    else:
        with pytest.raises(ValueError, match="layer .*padded"):
            asked(model, x, y, "hessian")


def test_what_was_looked_at_is_not_looked_at_again(rng, monkeypatch):
    """Before the weights or the examples are others."""
    looks = []
    monkeypatch.setattr(certificate, "total", lambda *about: looks.append(about) or [0.0])
    model, x, y = network("none"), rows(rng), rng.integers(0, 3, 400)
    for _ in range(2):
        asked(model, x, y, "gauss_newton")
    assert len(looks) == 1
    asked(model, x[::-1], y[::-1], "gauss_newton")
    assert len(looks) == 2
    model.layers[-1].bias.assign([0.1, 0.2, 0.3])
    asked(model, x[::-1], y[::-1], "gauss_newton")
    assert len(looks) == 3


@pytest.mark.parametrize("own", [False, True])
def test_models_of_keras_alone_are_not_looked_at(own, rng, monkeypatch):
    looks = []
    monkeypatch.setattr(certificate, "total", lambda *about: looks.append(about) or [0.0])
    model = network("none") if own else truth.softmax_model(6, 3)
    for curvature in BOTH:
        asked(model, rows(rng), rng.integers(0, 3, 400), curvature)
    assert len(looks) == 2 * own
