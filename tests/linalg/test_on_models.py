"""Every solver on Keras models, against closed forms and dense matrices."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, CG, MINRES, LiSSA, Nystrom
from keras_influence.linalg import solvers
from tests import truth
from tests.truth import L2


# EK-FAC and what is made of it are approximations by design: tests/engine/test_kronecker.py.
@pytest.mark.parametrize("method", sorted(set(solvers.SOLVERS) - {"ekfac", "two_level"}))
def test_all_methods_mean_the_same_damping_on_a_model(method, rng):
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    model = truth.softmax_model(3, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=(12, 2))
    exact = np.linalg.solve(hessian + 0.2 * np.eye(12), v)
    options = {
        "cg": CG(tol=1e-10),
        "minres": MINRES(tol=1e-10),
        "lissa": LiSSA(batch_size=10, tol=1e-8),
        "astra": ASTRA(batch_size=10, tol=1e-8),
        "nystrom": Nystrom(12),
    }
    solver = options.get(method, method)
    found = ki.inverse_hvp(model, v, (x, y), method=solver, damping=0.2, batch_size=7)
    assert truth.relative_error(found, exact) < 1e-6


def test_minibatch_lissa_is_within_its_noise(rng):
    """The spread over seeds is the stated error: the mean over seeds is closer than one run."""
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=12)
    exact = np.linalg.solve(hessian + 0.2 * np.eye(12), v)
    runs = [
        ki.inverse_hvp(
            model, v, (x, y), damping=0.2, method=LiSSA(batch_size=10, recursion_depth=300, seed=s)
        )
        for s in range(6)
    ]
    errors = [truth.relative_error(run, exact) for run in runs]
    assert max(errors) < 0.25
    assert truth.relative_error(np.mean(runs, 0), exact) < np.mean(errors) / 1.5


def test_same_seed_same_answer(rng):
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    model = truth.softmax_model(3, 3, l2=L2)
    v = rng.normal(size=12)
    method = LiSSA(batch_size=5, recursion_depth=100, seed=3, tol=10.0)
    first, second = (ki.inverse_hvp(model, v, (x, y), method=method) for _ in range(2))
    assert (first == second).all()


@pytest.mark.slow
def test_self_tuned_lissa_on_models_is_within_one_percent_of_exact(rng):
    """Gauss-Newton of networks at several dampings, with defaults; minibatches of 32."""
    for activation, width in (("tanh", 6), ("relu", 10), ("gelu", 4)):
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(width, activation)(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model.compile("adam", "sparse_categorical_crossentropy")
        train = rng.normal(size=(300, 5)), rng.integers(0, 3, 300)
        model.fit(*train, epochs=3, verbose=0)
        p = model.count_params()
        matrix = ki.hvp(model, np.eye(p), train, curvature="gauss_newton")
        v = np.array([truth.gradient(model, train[0][[i]], train[1][[i]]) for i in range(3)]).T
        for damping in (1e-1, 1e-2, 1e-3):
            found = ki.inverse_hvp(
                model, v, train, method="lissa", damping=damping, curvature="gauss_newton"
            )
            exact = np.linalg.solve(matrix + damping * np.eye(p), v)
            assert truth.relative_error(found, exact) < 0.01
