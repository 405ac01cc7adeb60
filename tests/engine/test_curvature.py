"""Curvature products against closed forms and a Hessian written out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.linalg.operators import Damped, Dense
from tests import truth
from tests.pool import pooled
from tests.truth import L2


@pytest.fixture(scope="module")
def softmax_problem():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(23, 4)), rng.integers(0, 3, 23)
    weights = rng.uniform(0, 2, 23)
    return x, y, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 23])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_softmax_regression_has_its_closed_form_hessian(
    softmax_problem, batch_size, weighted, curvature
):
    x, y, weights = softmax_problem
    weights = weights if weighted else None
    model = truth.softmax_model(4, 3, l2=L2)
    expected = truth.SoftmaxRegression(x, y, 3, L2, weights).hessian(truth.get_flat(model))
    train = (x, y) if weights is None else (x, y, weights)
    found = ki.hvp(model, np.eye(15), train, batch_size=batch_size, curvature=curvature)
    assert truth.relative_error(found, expected) < 1e-9


def _mlp_loss(theta, x, y):
    """Cross-entropy of a 4-5-3 tanh network with L1L2 on its first kernel, by hand."""
    w1, b1 = tf.reshape(theta[:20], [4, 5]), theta[20:25]
    w2, b2 = tf.reshape(theta[25:40], [5, 3]), theta[40:]
    logits = tf.tanh(x @ w1 + b1) @ w2 + b2
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    penalty = L2 * tf.reduce_sum(abs(w1)) + L2 * tf.reduce_sum(w1**2)
    return tf.reduce_mean(losses) + penalty


@pooled
def _mlp():
    inputs = keras.Input((4,))
    regulariser = keras.regularizers.L1L2(L2, L2)
    hidden = keras.layers.Dense(5, "tanh", kernel_regularizer=regulariser)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def _mlp_hessian(model, x, y):
    theta = tf.constant(truth.get_flat(model))
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            loss = _mlp_loss(theta, tf.constant(x), tf.constant(y))
        slope = inner.gradient(loss, theta)
    return outer.jacobian(slope, theta).numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 23])
def test_network_hessian_is_that_of_the_loss_written_by_hand(softmax_problem, batch_size):
    x, y, _ = softmax_problem
    model = _mlp()
    found = ki.hvp(model, np.eye(43), (x, y), batch_size=batch_size)
    assert truth.relative_error(found, _mlp_hessian(model, x, y)) < 1e-9


def test_gauss_newton_is_the_hessian_of_the_linearised_network(softmax_problem):
    x, y, _ = softmax_problem
    model = _mlp()
    theta = tf.constant(truth.get_flat(model))

    with tf.GradientTape() as tape:
        tape.watch(theta)
        w1, b1 = tf.reshape(theta[:20], [4, 5]), theta[20:25]
        w2, b2 = tf.reshape(theta[25:40], [5, 3]), theta[40:]
        logits = tf.tanh(tf.constant(x) @ w1 + b1) @ w2 + b2
    jacobian = tape.jacobian(logits, theta).numpy()
    p = truth.softmax(logits.numpy())
    bend = np.eye(3) * p[:, None] - p[:, :, None] * p[:, None]
    expected = np.einsum("nai,nab,nbj->ij", jacobian, bend, jacobian) / len(x)
    expected[:20, :20] += 2 * L2 * np.eye(20)

    found = ki.hvp(model, np.eye(43), (x, y), curvature="gauss_newton", batch_size=7)
    assert truth.relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("form", ["vector", "matrix", "list", "tensor"])
def test_result_has_the_form_of_v(softmax_problem, form, rng):
    x, y, _ = softmax_problem
    model = truth.softmax_model(4, 3, l2=L2)
    expected = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=(15, 2) if form == "matrix" else 15)
    given = tf.constant(v) if form == "tensor" else v
    if form == "list":
        given = [v[:12].reshape(4, 3), v[12:]]
    found = ki.hvp(model, given, (x, y))
    if form == "list":
        assert [part.shape for part in found] == [(4, 3), (3,)]
        found = np.concatenate([part.ravel() for part in found])
    assert found.shape == v.shape
    assert truth.relative_error(found, expected @ v) < 1e-9


def test_damping_adds_a_multiple_of_v(softmax_problem, rng):
    x, y, _ = softmax_problem
    model = truth.softmax_model(4, 3)
    expected = truth.SoftmaxRegression(x, y, 3, 0).hessian(truth.get_flat(model))
    v = rng.normal(size=15)
    found = ki.hvp(model, v, (x, y), damping=0.5)
    assert truth.relative_error(found, expected @ v + 0.5 * v) < 1e-9


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_of_weights_that_the_loss_does_not_read_damping_is_left(curvature, many, rng):
    inputs = keras.Input((3,))
    read, other = keras.layers.Dense(2), keras.layers.Dense(2)
    model = keras.Model(inputs, [read(inputs), other(inputs)])
    model.compile("sgd", ["mse", None])
    train = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    v = rng.normal(size=(8, 3) if many else 8)
    found = ki.hvp(model, v, train, variables=other, damping=0.5, curvature=curvature)
    assert truth.relative_error(found, 0.5 * v) < 1e-6


def test_minibatch_estimates_are_unbiased(softmax_problem, rng):
    from keras_influence.engine.problem import Problem

    x, y, _ = softmax_problem
    model = truth.softmax_model(4, 3, l2=L2)
    expected = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    operator = Problem(model, (x, y)).curvature("hessian")
    v = rng.normal(size=15)
    samples = operator.samples(1, seed=0)
    # One epoch without replacement visits every example once: its mean is exact.
    mean = np.mean([next(samples).matvec(v) for _ in range(23)], axis=0)
    assert truth.relative_error(mean, expected @ v) < 1e-9


def test_scipy_sees_the_same_matrix(rng):
    from scipy.sparse.linalg import eigsh

    matrix = rng.normal(size=(12, 12))
    matrix = matrix @ matrix.T
    operator = Damped(Dense(matrix), 0.3).as_scipy()
    assert operator.shape == (12, 12)
    largest = eigsh(operator, k=1, return_eigenvectors=False)[0]
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix)[-1] + 0.3)


def test_keras_model_as_scipy_operator(softmax_problem):
    from scipy.sparse.linalg import eigsh

    x, y, _ = softmax_problem
    model = truth.softmax_model(4, 3, l2=L2)
    operator = ki.operator(model, (x, y)).as_scipy()
    exact = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    found = eigsh(operator, k=2, return_eigenvectors=False)
    assert np.sort(found) == pytest.approx(np.linalg.eigvalsh(exact)[-2:])


def test_inverse_starts_from_x0(softmax_problem, rng):
    x, y, _ = softmax_problem
    model = truth.softmax_model(4, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=15)
    exact = np.linalg.solve(hessian + 0.1 * np.eye(15), v)
    one_step = ki.CG(tol=1e-9, max_iter=1)
    found = ki.inverse_hvp(model, v, (x, y), method=one_step, damping=0.1, x0=exact)
    assert truth.relative_error(found, exact) < 1e-12
    with pytest.raises(ValueError, match="`x0` should"):
        ki.inverse_hvp(model, v, (x, y), x0=np.ones(3))
