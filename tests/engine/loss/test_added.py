"""What layers add to the loss: a mean or a sum over examples, on all of the data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.problem import Problem
from tests import truth


class Penalty(keras.layers.Layer):
    """The squares of its input, as a mean over the rows of x that are not blank, over all, or as a sum."""

    def __init__(self, over):
        super().__init__()
        self.over = over

    def call(self, z, x):
        rows = keras.ops.sum(keras.ops.square(z), -1)
        there = keras.ops.cast(keras.ops.any(x != 0, -1), z.dtype)
        rows = rows * there if self.over == "the valid" else rows
        total = keras.ops.sum(rows)
        if self.over == "the valid":
            total = total / keras.ops.maximum(keras.ops.sum(there), 1.0)
        self.add_loss(
            total / keras.ops.cast(keras.ops.shape(z)[0], z.dtype) if self.over == "all" else total
        )
        return z


def _model(over):
    inputs = keras.Input((2,))
    hidden = Penalty(over)(keras.layers.Dense(2, "tanh")(inputs), inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_mean_over_valid_rows_is_no_mean_over_examples(rng, batch_size):
    """Of the few examples that are looked at first, none is blank."""
    x, y = rng.normal(size=(200, 2)), rng.normal(size=(200, 1))
    x[30:55] = 0
    about = {"damping": 1.0, "batch_size": batch_size, "verbose": 0}
    with pytest.warns(ki.ObjectiveWarning, match="neither a mean nor a sum"):
        ki.influence(_model("the valid"), (x[:2], y[:2]), (x, y), **about)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_mean_within_each_of_a_users_batches_need_not_be_one_over_those_that_are_joined(
    rng, batch_size
):
    """Each of them has valid rows alone, or none."""
    x, y = rng.normal(size=(200, 2)), rng.normal(size=(200, 1))
    x[30:55] = 0
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    model = _model("the valid")
    with pytest.warns(ki.ObjectiveWarning, match="neither a mean nor a sum"):
        problem = Problem(model, data)
    assert problem.train.largest == batch_size
    expected = np.mean([truth.gradient(model, *batch) for batch in data], 0)
    assert truth.relative_error(problem.value_and_gradient()[1], expected) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_few_examples_add_is_found_in_batches_of_any_size(rng, batch_size, monkeypatch):
    """Of the few examples that are looked at first, none adds anything; nothing is joined."""
    monkeypatch.setattr("keras_influence.engine.layers.footprint._BATCH", 1)
    x, y = np.zeros((200, 2)), rng.normal(size=(200, 1))
    x[30:55] = rng.normal(size=(25, 2))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    assert Problem(_model("all"), data).facts.added == "mean"


@pytest.mark.filterwarnings("error::keras_influence.ObjectiveWarning")
@pytest.mark.parametrize("over", ["all", "nothing"])
def test_a_mean_and_a_sum_are_in_the_curvature(rng, over):
    """That of Keras's loss on one batch, by finite differences; a mean is the same in two batches."""
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 1))
    x[3] = 0
    model = _model(over)
    expected = truth.finite_difference_hessian(model, x, y, 1e-4)
    p = model.count_params()
    found = ki.hvp(model, np.eye(p), (x, y), batch_size=12)
    assert truth.relative_error(found, expected) < 1e-5
    if over == "all":
        halves = ki.hvp(model, np.eye(p), (x, y), batch_size=6)
        assert truth.relative_error(halves, expected) < 1e-5


class Decay(keras.layers.Dense):
    """Adds the squares of its kernel, whatever it is given."""

    def call(self, x):
        self.add_loss(keras.ops.sum(keras.ops.square(self.kernel)))
        return super().call(x)


def test_a_penalty_of_weights_beside_a_mean_is_said_to_be_counted_as_examples(rng):
    inputs = keras.Input((2,))
    hidden = Penalty("all")(Decay(2, name="decayed")(inputs), inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 1))
    with pytest.warns(ki.ObjectiveWarning, match="What decayed adds .* `kernel_regularizer`"):
        ki.hvp(model, np.ones(model.count_params()), (x, y))
