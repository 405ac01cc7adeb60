"""Copies are the same model, or refused: with classes and functions that nobody registered."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import copies
from tests import truth
from tests.conftest import set_precision


def predictions(model, x):
    return [np.asarray(t) for t in model.predict(x, verbose=0)]


def own_classes():
    """A model with a class or function of one's own wherever Keras takes one."""

    class Scaled(keras.layers.Layer):
        def __init__(self, by=2.0, **options):
            super().__init__(**options)
            self.by = by

        def build(self, shape):
            self.scale = self.add_weight(shape=shape[-1:])

        def call(self, x):
            return self.by * x * self.scale

        def get_config(self):
            return {**super().get_config(), "by": self.by}

    class Cell(keras.layers.SimpleRNNCell):
        def call(self, inputs, states, training=False):
            output, states = super().call(inputs, states, training=training)
            return 2 * output, states

    class Cubed(keras.regularizers.Regularizer):
        def __call__(self, w):
            return keras.ops.sum(keras.ops.abs(w) ** 3)

        def get_config(self):
            return {}

    class Ones(keras.initializers.Initializer):
        def __call__(self, shape, dtype=None):
            return keras.ops.ones(shape, dtype)

        def get_config(self):
            return {}

    class Free(keras.constraints.Constraint):
        def __call__(self, w):
            return w

        def get_config(self):
            return {}

    class Quartic(keras.losses.Loss):
        def call(self, y, p):
            return keras.ops.mean((y - p) ** 4, -1)

    class Constant(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1

        def get_config(self):
            return {}

    class Descent(keras.optimizers.SGD):
        pass

    def swish(x):
        return x * keras.ops.sigmoid(1.5 * x)

    def squared(y, p):
        return keras.ops.mean((y - p) ** 2, -1)

    inputs = keras.Input((4, 3))
    h = keras.layers.RNN(Cell(3))(inputs)
    h = keras.layers.Dense(
        3,
        activation=swish,
        kernel_initializer=Ones(),
        kernel_regularizer=Cubed(),
        bias_constraint=Free(),
    )(h)
    h = keras.Sequential([keras.layers.Input((3,)), Scaled(1.5)])(h)
    h = keras.layers.Lambda(lambda t: 2 * t)(h)
    outputs = [keras.layers.Dense(1)(h), keras.layers.Dense(1)(h)]
    model = keras.Model(inputs, outputs)
    model.compile(Descent(Constant()), loss=[Quartic(), squared], metrics=[[squared], []])
    return model


@pytest.mark.parametrize("copy", [copies.same, copies.double])
def test_what_is_not_registered_is_found_in_the_model(rng, copy):
    model = own_classes()
    x, y = rng.normal(size=(5, 4, 3)), [rng.normal(size=(5, 1)) for _ in range(2)]
    twin = copy(model)
    assert twin is not model
    for a, b in zip(predictions(model, x), predictions(twin, x)):
        assert truth.relative_error(b, a) < 1e-12
    losses = [float(m.compute_loss(x, y, m(x, training=False))) for m in (model, twin)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert not set(map(id, twin.variables)) & set(map(id, model.variables))


FACTOR = 3.0


def test_lambdas_keep_what_they_read(rng):
    """Globals, also in activations; cells, where two lambdas have the same code."""
    scaled = [keras.layers.Lambda(lambda t, k=k: t * k) for k in (2.0, 5.0)]
    dense = keras.layers.Dense(2, activation=lambda t: t + FACTOR)
    layers = [keras.Input((3,)), dense, keras.layers.Lambda(lambda t: t * FACTOR), *scaled]
    model = keras.Sequential(layers)
    x = rng.normal(size=(4, 3))
    kernel, bias = model.get_weights()
    expected = (x @ kernel + bias + 3) * 3 * 2 * 5
    assert truth.relative_error(np.asarray(copies.same(model)(x)), expected) < 1e-14


def test_copying_registers_nothing(rng):
    before = dict(keras.saving.get_custom_objects())
    copies.same(own_classes())
    assert dict(keras.saving.get_custom_objects()) == before


def test_the_live_class_is_copied_not_a_later_one_of_that_name(rng):
    """As in a notebook, where a cell that registers a class is run again after an edit."""

    def define(factor):
        @keras.saving.register_keras_serializable("tests_copies")
        class Times(keras.layers.Layer):
            def call(self, x):
                return factor * x

        return Times

    first = define(2.0)
    model = keras.Sequential([keras.Input((2,)), first()])
    model.compile("sgd", "mse")
    define(3.0)
    x = rng.normal(size=(3, 2))
    assert copies.same(model)(x).numpy() == pytest.approx(2 * x)


def test_two_functions_of_one_name_are_refused():
    """By name Keras would take the same one for both outputs."""

    def quantile(q):
        def loss(y, p):
            return keras.ops.mean(keras.ops.maximum(q * (y - p), (q - 1) * (y - p)), -1)

        return loss

    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs) for _ in range(2)])
    model.compile("sgd", [quantile(0.1), quantile(0.9)])
    with pytest.raises(copies.CopyError, match="two different classes or functions named 'loss'"):
        copies.same(model)


def test_a_model_that_cannot_be_rebuilt_is_refused_in_few_words():
    class Net(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

        def get_config(self):
            return {}

    model = Net(keras.layers.Dense(1))
    model.build((None, 3))
    model.compile("sgd", "mse")
    with pytest.raises(copies.CopyError, match=r"`model` cannot be copied.*revive model") as caught:
        copies.same(model)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("copy", [copies.same, copies.double])
def test_classes_as_tutorials_write_them_are_copied(rng, copy):
    """With no `get_config()`, and an `__init__` that takes nothing for Keras's base class."""

    class Linear(keras.layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.units = units

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], self.units))

        def call(self, x):
            return keras.ops.matmul(x, self.w)

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Linear(3), Linear(2)]

        def call(self, x):
            return self.blocks[1](keras.ops.tanh(self.blocks[0](x)))

    inputs = keras.Input((4,))
    for model in (Net(), keras.Model(inputs, Linear(2)(inputs))):
        model.compile("sgd", "mse")
        x = rng.normal(size=(5, 4))
        model.fit(x, rng.normal(size=(5, 2)), verbose=0)
        found, known = (m.predict(x, verbose=0) for m in (copy(model), model))
        assert truth.relative_error(found, known) < 1e-12


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_a_copy_in_float64_has_the_penalty_of_its_original(regularizer, rng):
    set_precision("float32")
    dense = keras.layers.Dense(2, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((3,)), dense])
    model.compile(loss="mse")
    kernel = rng.normal(size=(3, 2)).astype("float32")
    dense.kernel.assign(kernel)
    with copies.double_precision():
        (penalty,) = copies.double(model).losses
    truth = 0.01 * (np.abs(np.float64(kernel)) ** int(regularizer[1])).sum()
    assert str(penalty.dtype) == "<dtype: 'float64'>"
    # The original keeps its factor in float32.
    assert float(penalty) == pytest.approx(truth, rel=1e-7)


def _adapted(rng):
    """Models with what `adapt` leaves in a layer, and an input for each."""
    words = np.array([["red green"], ["blue red"], ["black"]], object)
    text = keras.layers.TextVectorization(output_sequence_length=3)
    text.adapt(tf.constant(words))
    weighted = keras.layers.TextVectorization(output_mode="tf_idf")
    weighted.adapt(tf.constant(words))
    number = keras.layers.IntegerLookup(output_mode="one_hot")
    number.adapt(np.array([3, 7, 7]))
    scaled = keras.layers.Normalization()
    scaled.adapt(rng.normal(3, 2, (20, 4)))
    binned = keras.layers.Discretization(num_bins=3)
    binned.adapt(rng.normal(size=50))
    yield keras.Input((1,), dtype="string"), [text, keras.layers.Embedding(9, 2)], words
    yield keras.Input((1,), dtype="string"), [weighted, keras.layers.Dense(2)], words
    yield keras.Input((1,), dtype="int64"), [number, keras.layers.Dense(2)], np.array([[3], [8]])
    yield keras.Input((4,)), [scaled, keras.layers.Dense(2)], rng.normal(3, 2, (5, 4))
    yield keras.Input((1,)), [binned, keras.layers.Embedding(3, 2)], rng.normal(size=(5, 1))


@pytest.mark.parametrize("copy", [copies.same, copies.double])
@pytest.mark.parametrize("kind", range(5))
def test_what_a_layer_has_adapted_to_is_copied(kind, copy, rng):
    inputs, layers, x = list(_adapted(rng))[kind]
    model = keras.Model(inputs, keras.Sequential(layers)(inputs))
    model.compile("sgd", "mse")
    x = tf.constant(x)
    known = model(x).numpy()
    with copies.double_precision():
        if kind == 1 and keras.__version__ < "3.14":
            with pytest.raises(copies.CopyError, match="text_vectorization.* cannot be restored"):
                copy(model)  # Keras itself cannot load what it saves of tf-idf there.
        else:
            assert truth.relative_error(copy(model)(x).numpy(), known) < 1e-5


def test_what_tensorflow_tracks_is_copied(rng):
    """TensorFlow wraps the tuples of what it tracks, as an optimizer that scales losses."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="float32")])
        model.compile("adam", "mse")
        x = rng.normal(size=(8, 3)).astype("float32")
        model.fit(x, x[:, :2], verbose=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert truth.relative_error(copies.same(model)(x).numpy(), model(x).numpy()) < 1e-6


def test_copying_leaves_random_states_alone():
    import random

    model = truth.softmax_model(3, 2)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1]
    copies.same(model)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
