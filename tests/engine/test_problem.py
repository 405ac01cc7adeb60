"""Problem: a model and its data, against closed forms, and unchanged by what it is asked."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.problem import CURVATURES, Problem
from tests import truth
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.uniform(0.5, 2, 30)


@pytest.fixture
def closed(data):
    return truth.SoftmaxRegression(*data[:2], 3, L2, data[2])


@pytest.fixture
def problem(data):
    return Problem(truth.softmax_model(4, 3, L2), data, batch_size=7)


def test_first_derivatives(problem, closed, data):
    theta = truth.get_flat(problem.model)
    g = data[2][:, None] * closed.example_gradients(theta)
    assert problem.n == 30
    assert problem.parameters.size == 15
    assert truth.relative_error(problem.losses(problem.train), data[2] * closed.losses(theta)) < (
        1e-9
    )
    assert truth.relative_error(problem.example_gradients(problem.train), g) < 1e-9
    some = problem.train.subset([3, 20, 21])
    assert truth.relative_error(problem.gradient(some), g[[3, 20, 21]].sum(0) / 30) < 1e-9


def test_scores_of_many_rows(problem, closed, data, rng):
    theta = truth.get_flat(problem.model)
    g = data[2][:, None] * closed.example_gradients(theta)
    for count in (1, 5, 130):
        rows = rng.normal(size=(count, 15))
        assert truth.relative_error(problem.scores(rows), rows @ g.T / 30) < 1e-9


@pytest.mark.parametrize("name", CURVATURES)
def test_curvature_is_without_damping(name, problem, closed, data):
    """Both are the same matrix here; a group is taken out with its share of n."""
    theta, group = truth.get_flat(problem.model), np.arange(4, 19)
    whole = problem.curvature(name).to_dense()
    assert truth.relative_error(whole, closed.hessian(theta)) < 1e-9
    left = data[2].copy()
    left[group] = 0
    rest = truth.SoftmaxRegression(*data[:2], 3, L2, left).hessian(theta)
    without = problem.curvature(name, problem.train.subset(group)).to_dense()
    assert truth.relative_error(without, rest) < 1e-9


@pytest.mark.parametrize("name", CURVATURES)
def test_a_curvature_is_doubtful_where_that_is_said_also_without_a_group(name, problem):
    for group in (None, problem.train.subset(np.arange(4))):
        assert problem.curvature(name, group, doubtful=True).doubtful
        assert not problem.curvature(name, group).doubtful


def test_targets_are_values_of_the_function(problem, data):
    probabilities = problem.model(data[0]).numpy()
    found = problem.outputs(problem.train, lambda x, y, y_pred: y_pred[:, 1])
    assert found.dtype == np.float64
    assert truth.relative_error(found, probabilities[:, 1]) < 1e-12


def test_other_data_come_in_batches_of_the_same_size(problem, data):
    assert len(problem.read(data, "test")) == 5
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(10)
    assert len(problem.read(dataset, "test")) == 3


def test_it_follows_the_weights_of_its_model(problem, closed, data, rng):
    theta = rng.normal(size=15)
    truth.set_flat(problem.model, theta)
    assert truth.relative_error(problem.losses(problem.train), data[2] * closed.losses(theta)) < (
        1e-9
    )


def test_what_layers_have_added_at_the_last_call_is_there_still(rng):
    layers = keras.layers
    dense = layers.Dense(2, activity_regularizer="l2")
    model = keras.Sequential([keras.Input((3,)), dense, layers.Dense(1)])
    model.compile("sgd", "mse")
    x = rng.normal(size=(20, 3)).astype("float32")
    model(x)
    before = [float(loss) for loss in model.losses]
    ki.influence(model, (x[:2], x[:2, :1]), (x, x[:, :1]), verbose=0)
    assert [float(loss) for loss in model.losses] == before != []


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_kernel_is_traced(enabled, data):
    """And it is collected afterwards as it was before."""
    seen = []

    def loss(y, z):
        if tf.is_symbolic_tensor(z):
            seen.append(gc.isenabled())
        return tf.reduce_mean(tf.square(z - tf.cast(tf.reshape(y, [-1, 1]), z.dtype)), -1)

    model = truth.softmax_model(4, 3, L2)
    model.compile("sgd", loss)
    problem = Problem(model, data)
    (gc.enable if enabled else gc.disable)()
    seen.clear()
    try:
        problem.curvature("hessian").matmat(np.ones((1, problem.parameters.size)))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert seen and not any(seen)


def test_a_length_that_varies_is_traced_once_by_the_kernels_that_come_later(rng):
    tracing = []

    def pool(t):
        tracing.append(not tf.executing_eagerly())
        return tf.reduce_mean(t, 1)

    inputs = keras.Input((None, 3))
    outputs = keras.layers.Dense(2)(keras.layers.Lambda(pool, output_shape=(3,))(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    parts = [(rng.normal(size=(5, size, 3)), rng.normal(size=(5, 2))) for size in (4, 6, 5)]
    batches = tf.data.Dataset.from_generator(
        lambda: iter(parts),
        output_signature=(tf.TensorSpec([None, None, 3]), tf.TensorSpec([None, 2])),
    )
    problem = Problem(model, batches)
    problem.value_and_gradient()
    tracing.clear()
    found = problem.curvature("gauss_newton").matmat(np.eye(8))
    assert sum(tracing) == 1
    rows = np.concatenate([np.c_[x.mean(1), np.ones(5)] for x, _ in parts])
    assert truth.relative_error(found, np.kron(rows.T @ rows / 15, np.eye(2))) < 1e-5


def test_costs_tell_what_tracing_takes():
    """It grows with the operations of the network, whatever its size."""

    def tracing(depth):
        stack = [keras.layers.Dense(3, "tanh") for _ in range(depth)]
        model = keras.Sequential([keras.Input((2,)), *stack])
        model.compile("sgd", "mse")
        return Problem(model, (np.zeros((4, 2)), np.ones((4, 3)))).costs()["tracing"]

    shallow, deeper = tracing(1), tracing(4)
    assert 0 < shallow < deeper < 4 * shallow
