"""Models whose examples have no output of their own are refused by name and reason."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki

layers, ops = keras.layers, keras.ops


class Sampling(layers.Layer):
    def __init__(self, raw, **options):
        super().__init__(**options)
        self.raw, self.generator = raw, keras.random.SeedGenerator(1)

    def call(self, z):
        if self.raw:
            return z + 1e-3 * tf.random.normal(tf.shape(z), dtype=z.dtype)
        return z + keras.random.normal(ops.shape(z), seed=self.generator, dtype=z.dtype)


class Centred(layers.Layer):
    def call(self, z):
        return z - ops.mean(z, axis=0, keepdims=True)


class Pairs(layers.Layer):
    def call(self, z):
        return ops.reshape(z, (-1, 2 * z.shape[-1]))

    def compute_output_shape(self, shape):
        return (None, 2 * shape[-1])


@pytest.mark.parametrize("batch_size", [1, 256])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Sampling(raw=False, name="sampling"), "random at training=False.*sampling"),
        (lambda: Sampling(raw=True), "random at training=False"),
        (Centred, "depends on the other examples of its batch"),
        (Pairs, "one output for each example of `train`"),
    ],
)
def test_refused(layer, message, batch_size, rng):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(layer()(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = [v.numpy().copy() for v in model.variables]
    data = rng.normal(size=(12, 4)), rng.integers(0, 3, 12)
    with pytest.raises(ValueError, match=message):
        ki.influence(model, data, data, batch_size=batch_size, verbose=0)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables))


def test_a_train_step_that_calls_the_model_otherwise_is_named(rng):
    class Pairs(keras.Model):
        def build(self, shape):
            self.dense = keras.layers.Dense(1)
            self.dense.build((None, 2))

        def call(self, inputs):
            a, b = inputs
            return self.dense(a - b)

        def train_step(self, data):
            raise NotImplementedError

    model = Pairs()
    model.build(None)
    model.compile("sgd", "mse")
    train = rng.normal(size=(12, 2)), rng.normal(size=(12, 1))
    refused = "does not fit(.|\n)*Pairs has a `train_step` of its own"
    with pytest.warns(ki.ObjectiveWarning), pytest.raises(ValueError, match=refused):
        ki.influence(model, train, train)


def test_a_layer_that_takes_only_sparse_tensors_is_told(rng):
    class Product(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(4, 1))

        def call(self, x):
            return tf.sparse.sparse_dense_matmul(x, self.kernel.value)

        def compute_output_spec(self, x):
            return keras.KerasTensor((None, 1))

    inputs = keras.Input((4,), sparse=True)
    model = keras.Model(inputs, Product()(inputs))
    model.compile("sgd", "mse")
    x, y = tf.sparse.from_dense(rng.normal(size=(12, 4))), rng.normal(size=(12, 1))
    with pytest.raises(
        ValueError, match="does not fit(.|\n)*Sparse tensors are handed to it dense"
    ):
        ki.influence(model, (x, y), (x, y))


def test_a_model_for_batches_of_one_size_is_told(rng):
    inputs = keras.Input(batch_shape=(4, 3, 2))
    hidden = keras.layers.SimpleRNN(2, stateful=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse")
    data = rng.normal(size=(8, 3, 2)), rng.normal(size=(8, 1))
    with pytest.raises(ValueError, match="takes batches of 4 examples alone(.|\n)*stateful=False"):
        ki.influence(model, data, data, batch_size=4)


def test_more_inputs_than_a_model_takes_are_not_warned_about(rng):
    """Keras warns of them at every shape of a batch; `fit` has said so."""
    inputs = {"a": keras.Input((2,), name="a")}
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs["a"]))
    model.compile("sgd", "mse")
    data = {"a": rng.normal(size=(12, 2)), "b": rng.normal(size=12)}, rng.normal(size=(12, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ki.influence(model, data, data, damping=1.0, verbose=0)


def test_no_loss_at_all_is_said(rng):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    model.compile("sgd")
    with pytest.raises(ValueError, match="compiled with a loss.*add_loss"):
        ki.influence(model, (rng.normal(size=(5, 4)),), (rng.normal(size=(5, 4)),), verbose=0)


def test_what_is_neither_mean_nor_sum_is_named(rng):
    class Spread(layers.Layer):
        def call(self, z):
            self.add_loss(ops.var(z))
            return z

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(Spread(name="spread")(layers.Dense(2)(inputs))))
    model.compile("sgd", "mse")
    data = rng.normal(size=(12, 4)), rng.normal(size=(12, 1))
    with pytest.warns(
        ki.ObjectiveWarning, match="spread adds to the loss by `add_loss` is neither"
    ):
        ki.hvp(model, np.ones(13), data)
