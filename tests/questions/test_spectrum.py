"""Eigenvalues and traces against the closed-form Hessian."""

import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.truth import L2


@pytest.fixture
def problem(rng):
    data = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    model = truth.softmax_model(4, 3, L2, ki.InfluenceModel)
    return model, data, truth.SoftmaxRegression(*data, 3, L2).hessian(truth.get_flat(model))


@pytest.mark.parametrize(
    ("which", "pick"),
    [
        ("LA", lambda e: e[-4:]),
        ("SA", lambda e: e[:4]),
        ("LM", lambda e: e[-4:]),
        ("BE", lambda e: np.r_[e[:2], e[-2:]]),
    ],
)
def test_extreme_eigenvalues(which, pick, problem):
    model, data, hessian = problem
    found = model.hessian_eigenvalues(data, 4, which=which, tol=1e-10, batch_size=7)
    assert found == pytest.approx(pick(np.linalg.eigvalsh(hessian)), abs=1e-8)


def test_all_eigenvalues(problem):
    """Of p x p Lanczos finds p - 1; all of them are those of the matrix written out."""
    model, data, hessian = problem
    found = model.hessian_eigenvalues(data, 15)
    assert found == pytest.approx(np.linalg.eigvalsh(hessian), abs=1e-10)


def test_trace_is_within_its_standard_error(problem):
    model, data, hessian = problem
    trace = model.hessian_trace(data, samples=200, damping=0.5)
    exact = np.trace(hessian) + 0.5 * 15
    assert abs(trace.value - exact) < 4 * trace.error
    assert trace.error < 0.05 * exact
    assert trace.mean_eigenvalue == trace.value / 15


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 16}, "`k` should be at most the 15"), ({"k": 0}, "`k`"), ({"which": "top"}, "`which`"),
     ({"tol": -1}, "`tol`"), ({"curvature": "auto"}, "`curvature`")],
)  # fmt: skip
def test_bad_options(options, message, problem):
    model, data, _ = problem
    with pytest.raises(ValueError, match=message):
        ki.hessian_eigenvalues(model, data, **options)


def test_bad_samples(problem):
    model, data, _ = problem
    with pytest.raises(ValueError, match="`samples`"):
        ki.hessian_trace(model, data, samples=1)
