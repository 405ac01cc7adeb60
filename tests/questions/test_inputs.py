"""Scores as functions of the training input."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.questions.models import fitted_ridge, gauss_newton, network
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, 3, 24)


def test_input_influence_is_the_derivative_of_the_score(data):
    """Score of one training example, with H and the test gradient fixed, at a moved input."""
    x, y = data
    test = (x[:2], y[:2])
    options = {"damping": 0.5, "curvature": "gauss_newton", "method": "direct"}
    model = network()
    found = ki.input_influence(model, test, data, batch_size=7, **options)
    assert found.shape == (2, 24, 4)
    matrix = gauss_newton(model, x) + 0.5 * np.eye(43)
    s = np.linalg.solve(matrix, np.array([truth.gradient(model, x[[i]], y[[i]]) for i in (0, 1)]).T)
    for j in (0, 5, 23):
        for feature in range(4):
            ends = []
            for sign in (1, -1):
                moved = x[[j]].copy()
                moved[0, feature] += sign * 1e-5
                ends.append(s.T @ truth.gradient(model, moved, y[[j]]) / 24)
            exact = (ends[0] - ends[1]) / 2e-5
            assert found[:, j, feature] == pytest.approx(exact, rel=1e-5, abs=1e-9)
    some = ki.input_influence(model, test, data, indices=[23, 5], **options)
    assert truth.relative_error(some, found[:, [23, 5]]) < 1e-10


def test_input_influence_holds_what_a_layer_adds(data):
    """For an example by itself it is part of its loss."""
    x, y = data
    inputs = keras.Input((4,))

    class Penalised(keras.layers.Layer):
        def call(self, z):
            self.add_loss(4 * keras.ops.mean(keras.ops.sum(z**2, axis=-1)))
            return z

    hidden = Penalised()(keras.layers.Dense(5, "tanh")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")

    def loss_gradient(inputs, labels):
        return truth.gradient(model, inputs, labels)

    options = {"damping": 0.5, "curvature": "hessian", "method": "direct", "batch_size": 24}
    found = ki.input_influence(model, (x[:1], y[:1]), data, **options)
    hessian = truth.finite_difference_hessian(model, x, y, 1e-3)
    s = np.linalg.solve(hessian + 0.5 * np.eye(43), loss_gradient(x[:1], y[:1]))
    for feature in range(4):
        moved = np.zeros((1, 4))
        moved[0, feature] = 1e-5
        ends = [s @ loss_gradient(x[[7]] + sign * moved, y[[7]]) / 24 for sign in (1, -1)]
        assert found[0, 7, feature] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_input_influence_predicts_the_effect_of_moving_an_input(rng):
    """Koh and Liang's perturbation: refit a ridge regression with one input moved."""
    model, x, y = fitted_ridge(rng)
    test = (rng.normal(size=(2, 3)), rng.normal(size=(2, 1)))
    found = model.input_influence(test, (x, y[:, None]), damping=0.0)
    theta = truth.ridge_fit(x, y, L2)
    direction, eps = rng.normal(size=3), 1e-5
    ends = []
    for sign in (1, -1):
        moved = x.copy()
        moved[4] += sign * eps * direction
        theta = truth.ridge_fit(moved, y, L2)
        ends.append((test[0] @ theta - test[1][:, 0]) ** 2)
    actual = (ends[0] - ends[1]) / (2 * eps)
    assert -found[:, 4] @ direction == pytest.approx(actual, rel=1e-5)


@pytest.mark.slow
def test_input_influence_of_nested_inputs(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b", dtype="int32")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(b))
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([a, embedded]))
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", "mse")
    x = {"a": rng.normal(size=(8, 3)), "b": rng.integers(0, 4, (8, 1))}
    train = (x, rng.normal(size=(8, 1)))
    found = ki.input_influence(model, train, train, damping=1.0, curvature="gauss_newton")
    assert found["a"].shape == (8, 8, 3)
    assert found["b"] is None


def test_input_influence_needs_no_labels(data):
    """With a large λ it is ∂/∂x_j of gradient products, over λ n."""

    class Reconstruction(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, z):
            out = self.dense(z)
            self.add_loss(keras.ops.mean(keras.ops.square(out - z)))
            return out

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Reconstruction()(inputs))
    model.compile("sgd")
    x = data[0][:5]
    found = ki.input_influence(
        model, (x[:2],), (x,), damping=1e9, method="direct", curvature="hessian"
    )
    assert found.shape == (2, 5, 4)
    at = lambda row: truth.gradient(model, row, None)
    asked = np.array([at(x[[0]]), at(x[[1]])])
    for feature in range(4):
        step = 1e-5 * np.eye(4)[feature]
        slope = (at(x[[3]] + step) - at(x[[3]] - step)) / 2e-5
        assert found[:, 3, feature] * 1e9 * 5 == pytest.approx(asked @ slope, rel=1e-5)
