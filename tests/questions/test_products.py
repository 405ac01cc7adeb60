"""hvp, inverse_hvp and the operator, against closed forms and through SciPy."""

import gc

import keras
import numpy as np
import pytest
import scipy.sparse.linalg

import keras_influence as ki
from keras_influence import CG
from tests import truth
from tests.linalg import matrices
from tests.questions.models import gauss_newton, network
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(30, 4)), rng.integers(0, 3, 30)


@pytest.fixture
def problem(data):
    """A softmax regression with its Hessian, θ of 15 weights."""
    model = truth.softmax_model(4, 3, L2, ki.InfluenceModel)
    return model, truth.SoftmaxRegression(*data, 3, L2).hessian(truth.get_flat(model))


def forms(v):
    """One vector in all forms that `v` may have, and the way back to (p,)."""
    return {
        "vector": (v, lambda x: x),
        "matrix": (v[:, None], lambda x: x[:, 0]),
        "list": ([v[:12].reshape(4, 3), v[12:]], lambda x: np.concatenate([p.ravel() for p in x])),
    }


@pytest.mark.parametrize("form", ["vector", "matrix", "list"])
def test_products_have_the_form_of_v(form, problem, data, rng):
    model, hessian = problem
    v = rng.normal(size=15)
    given, back = forms(v)[form]
    damped = hessian + 0.1 * np.eye(15)
    found = ki.hvp(model, given, data, damping=0.1, batch_size=7)
    assert truth.relative_error(back(found), damped @ v) < 1e-10
    solved = ki.inverse_hvp(model, given, data, damping=0.1, method=CG(tol=1e-11))
    assert truth.relative_error(back(solved), np.linalg.solve(damped, v)) < 1e-9
    for result in (found, solved):
        assert type(result) is type(given)
        assert np.shape(result) == np.shape(given) if form != "list" else len(result) == 2


def test_the_operator_is_the_damped_curvature(problem, data, rng):
    model, hessian = problem
    operator = model.operator(data, damping=0.1, batch_size=7)
    assert operator.size == 15
    assert operator.dtype == np.float64
    damped = hessian + 0.1 * np.eye(15)
    v = rng.normal(size=15)
    assert truth.relative_error(operator.matvec(v), damped @ v) < 1e-10
    assert truth.relative_error(operator.to_dense(), damped) < 1e-10


def test_the_operator_of_gauss_newton(data):
    model = network(l2=L2)
    found = ki.operator(model, data, curvature="gauss_newton").to_dense()
    assert truth.relative_error(found, gauss_newton(model, data[0], L2)) < 1e-9


def test_the_operator_serves_scipys_solvers(problem, data, rng):
    model, hessian = problem
    operator = ki.operator(model, data, damping=0.1).as_scipy()
    v = rng.normal(size=15)
    x, info = scipy.sparse.linalg.cg(operator, v, **matrices.relative(1e-11))
    assert info == 0
    assert truth.relative_error(x, np.linalg.solve(hessian + 0.1 * np.eye(15), v)) < 1e-8
    values = scipy.sparse.linalg.eigsh(operator, 3, return_eigenvectors=False)
    assert values == pytest.approx(np.linalg.eigvalsh(hessian)[-3:] + 0.1, abs=1e-8)
    several = rng.normal(size=(15, 4))
    assert truth.relative_error(operator @ several, hessian @ several + 0.1 * several) < 1e-10


def test_the_operator_keeps_its_model_and_follows_its_weights(data, rng):
    model = truth.softmax_model.fresh(4, 3, L2)
    operator = ki.operator(model, data)
    theta = rng.normal(size=15)
    truth.set_flat(model, theta)
    del model
    gc.collect()
    exact = truth.SoftmaxRegression(*data, 3, L2).hessian(theta)
    assert truth.relative_error(operator.to_dense(), exact) < 1e-10


def test_automatic_damping_is_in_the_operator(problem, data):
    model, hessian = problem
    added = model.operator(data, damping="auto").to_dense() - hessian
    assert np.abs(added - added[0, 0] * np.eye(15)).max() < 1e-10
    assert added[0, 0] == pytest.approx(0.1 * np.trace(hessian) / 15, rel=0.5)


def test_a_start_near_the_answer_saves_the_solve(problem, data, rng):
    model, hessian = problem
    v = rng.normal(size=15)
    exact = np.linalg.solve(hessian + 0.1 * np.eye(15), v)
    found = ki.inverse_hvp(model, v, data, damping=0.1, method=CG(max_iter=1), x0=exact + 1e-9)
    assert truth.relative_error(found, exact) < 1e-7


@pytest.mark.parametrize(
    ("x0", "error", "words"),
    [
        (np.ones(14), ValueError, "`x0` should be a vector of shape"),
        (np.ones((15, 2)), ValueError, "`x0` should have the form of `v`"),
        ("zero", TypeError, "`x0` should be a numeric array"),
    ],
)
def test_a_start_of_another_form_is_refused(x0, error, words, problem, data):
    with pytest.raises(error, match=words):
        ki.inverse_hvp(problem[0], np.ones(15), data, x0=x0)


def test_the_sum_of_losses_has_n_times_the_curvature(data):
    model = truth.softmax_model(4, 3)
    closed = truth.SoftmaxRegression(*data, 3, 0.0)
    hessian = closed.hessian(truth.get_flat(model))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    assert truth.relative_error(ki.operator(model, data, batch_size=7).to_dense(), 30 * hessian) < (
        1e-9
    )
