"""Scores against closed-form leave-one-out, the derivative of a refit, and retraining."""

import warnings

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, LiSSA
from tests import truth
from tests.conftest import set_precision
from tests.questions.models import network
from tests.retraining import ridge_losses
from tests.truth import L2


@pytest.fixture
def fitted(ridge):
    """`ridge` at its minimum."""
    model, train, test = ridge
    truth.set_flat(model, truth.ridge_fit(train[0], train[1][:, 0], L2))
    return model, train, test


def _test_losses(x, y, weights, test):
    return ridge_losses((x, y[:, None]), test, weights)


@pytest.mark.parametrize("batch_size", [7, 40])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("method", [CG(tol=1e-10), "direct"], ids=["cg", "direct"])
def test_influence_is_the_derivative_of_the_refit(fitted, method, curvature, batch_size):
    model, train, test = fitted
    x, y = train[0], train[1][:, 0]
    scores = ki.influence(
        model,
        test,
        train,
        damping=0.0,
        method=method,
        curvature=curvature,
        batch_size=batch_size,
    )
    eps = 1e-4
    for j in range(len(x)):
        up, down = np.ones(len(x)), np.ones(len(x))
        up[j] += eps
        down[j] -= eps
        rise = _test_losses(x, y, up, test) - _test_losses(x, y, down, test)
        # Leaving j out lowers its weight, hence the minus.
        assert truth.relative_error(scores.values[:, j], -rise / (2 * eps)) < 1e-6


def test_influence_is_closed_form_leave_one_out_to_first_order(fitted):
    """Sherman-Morrison gives the exact leave-one-out change; influence is its first order."""
    model, (x, y), test = fitted
    y = y[:, 0]
    scores = ki.influence(model, test, (x, y[:, None]), damping=0.0).values
    n = len(x)
    theta = truth.ridge_fit(x, y, L2)
    h_inverse = np.linalg.inv(2 * x.T @ x / n + 2 * L2 * np.eye(4))
    for j in range(n):
        g = 2 * (x[j] @ theta - y[j]) * x[j]
        leverage = 2 * x[j] @ h_inverse @ x[j] / n
        first_order = h_inverse @ g / n
        removed = theta + first_order / (1 - leverage)
        kept = np.ones(n)
        kept[j] = 0
        assert truth.relative_error(removed, truth.ridge_fit(x, y, L2, kept)) < 1e-10
        slope = 2 * (test[0] @ theta - test[1][:, 0])
        assert truth.relative_error(scores[:, j], slope * (test[0] @ first_order)) < 1e-8


def test_sample_weights_scale_what_an_example_contributes(rng):
    """With weights s, leaving j out takes s_j ℓ_j out of the objective."""
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    s = rng.uniform(0.2, 2, 20)
    test = (rng.normal(size=(3, 3)), rng.normal(size=(3, 1)))
    model = truth.ridge_model(3, L2)
    truth.set_flat(model, truth.ridge_fit(x, y, L2, s))
    scores = ki.influence(model, test, (x, y[:, None], s), damping=0.0, batch_size=6)
    eps = 1e-4
    for j in range(20):
        up, down = s.copy(), s.copy()
        up[j] *= 1 + eps
        down[j] *= 1 - eps
        rise = _test_losses(x, y, up, test) - _test_losses(x, y, down, test)
        assert truth.relative_error(scores.values[:, j], -rise / (2 * eps)) < 1e-6


def test_integer_sample_weights_count_as_numbers(rng):
    x, y, s = rng.normal(size=(20, 3)), rng.normal(size=(20, 1)), rng.integers(1, 4, 20)
    model = truth.ridge_model(3, L2)
    found = ki.influence(model, (x, y, s), (x, y, s), damping=0.1).values
    expected = ki.influence(model, (x, y, s * 1.0), (x, y, s * 1.0), damping=0.1).values
    g = s[:, None] * 2 * (x @ truth.get_flat(model) - y[:, 0])[:, None] * x
    matrix = 2 * (x.T * s) @ x / 20 + (2 * L2 + 0.1) * np.eye(3)
    assert truth.relative_error(expected, g @ np.linalg.solve(matrix, g.T) / 20) < 1e-8
    assert (found == expected).all()


def test_self_influence_matches_its_formula(rng):
    x, y = rng.normal(size=(25, 3)), rng.integers(0, 3, 25)
    model = truth.softmax_model(3, 3, L2)
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    theta = closed.fit(truth.get_flat(model))
    truth.set_flat(model, theta)
    g = closed.example_gradients(theta)
    expected = np.einsum(
        "ni,ij,nj->n", g, np.linalg.inv(closed.hessian(theta) + 0.01 * np.eye(12)), g
    )
    for method in (CG(tol=1e-10), "direct"):
        found = ki.self_influence(model, (x, y), method=method, batch_size=6)
        assert truth.relative_error(found, expected) < 1e-8


def test_minibatch_lissa_scores_are_close(rng):
    x, y = rng.normal(size=(80, 3)), rng.integers(0, 3, 80)
    model = truth.softmax_model(3, 3, L2)
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    theta = closed.fit(truth.get_flat(model))
    truth.set_flat(model, theta)
    g = closed.example_gradients(theta)
    expected = g[:4] @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(12), g.T) / 80
    method = LiSSA(batch_size=20, recursion_depth=300, num_samples=4)
    found = ki.influence(model, (x[:4], y[:4]), (x, y), method=method, damping=0.1)
    assert truth.relative_error(found.values, expected) < 0.1
    assert np.corrcoef(found.values.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_digits_predicted_against_actual_leave_one_out():
    """Softmax regression with L2 on digits: 120 actual refits, exact to machine precision."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.data / 16, digits.target
    train, test = (x[:1200], y[:1200]), (x[1200:], y[1200:])
    closed = truth.SoftmaxRegression(*train, 10, 1 / 64)
    theta = closed.fit(np.zeros(650), tol=1e-9)
    model = truth.softmax_model(64, 10, 1 / 64)
    truth.set_flat(model, theta)
    unseen = truth.SoftmaxRegression(*test, 10, 0.0)
    worst = np.argsort(-unseen.losses(theta))[:2]
    scores = ki.influence(
        model, (test[0][worst], test[1][worst]), train, damping=0.0, method=CG(tol=1e-8)
    )
    strongest = np.argsort(-np.abs(scores.values).max(0))[:60]
    others = np.random.default_rng(0).choice(1200, 60, replace=False)
    removed = np.union1d(strongest, others)
    assert len(removed) >= 100

    before = unseen.losses(theta)[worst]
    inverse = np.linalg.pinv(closed.hessian(theta), hermitian=True)
    actual = []
    for j in removed:
        closed.w[:] = 1
        closed.w[j] = 0
        refit = theta
        # Newton's method with the fixed inverse Hessian of the full data converges linearly.
        for _ in range(40):
            slope = closed.gradient(refit)
            refit = refit - inverse @ slope
            if np.abs(slope).max() < 1e-11:
                break
        assert np.abs(closed.gradient(refit)).max() < 1e-10
        actual.append(unseen.losses(refit)[worst] - before)
    actual, predicted = np.array(actual).T, scores.values[:, removed]
    for a, b in zip(actual, predicted):
        assert np.corrcoef(a, b)[0, 1] >= 0.99
        assert np.polyfit(b, a, 1)[0] == pytest.approx(1, abs=0.05)


def test_inverse_hvp_with_an_indefinite_hessian_is_never_silently_wrong(rng):
    model, train = network(), (rng.normal(size=(20, 4)), rng.integers(0, 3, 20))
    v = rng.normal(size=43)
    with pytest.raises(ki.NegativeCurvatureError):
        ki.inverse_hvp(model, v, train, damping=1e-3)
    found = ki.inverse_hvp(model, v, train, damping=1e-3, method="direct")
    hessian = truth.finite_difference_hessian(model, *train, 1e-3)
    exact = np.linalg.solve(hessian + 1e-3 * np.eye(43), v)
    assert truth.relative_error(found, exact) < 1e-6


def test_float32_reaches_the_float64_answer(rng):
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    double = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    g = closed.example_gradients(truth.get_flat(double))
    hessian = closed.hessian(truth.get_flat(double))
    exact = g[:5] @ np.linalg.solve(hessian + 0.01 * np.eye(15), g.T) / 60
    set_precision("float32")
    single = truth.softmax_model(4, 3, L2)
    truth.set_flat(single, truth.get_flat(double))
    for method in ("cg", "direct"):
        found = ki.influence(single, (x[:5], y[:5]), (x, y), method=method)
        assert found.converged.all()
        assert truth.relative_error(found.values, exact) < 1e-4


@pytest.mark.parametrize("method", ["auto", "cg", "ekfac"])
def test_a_quantised_layer_has_its_bias(rng, method):
    """Of an int8 kernel nothing is trained; of the bias b ∇ℓ is p - the label, and H E[diag p - p pᵀ]."""
    set_precision("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.quantize("int8")
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = rng.normal(size=(20, 6)).astype("float32"), rng.integers(0, 3, 20)
    p = model.predict(x, verbose=0).astype(float)
    g = p - np.eye(3)[y]
    matrix = np.diag(p.mean(0)) - p.T @ p / 20 + 0.1 * np.eye(3)
    found = ki.influence(model, (x[:2], y[:2]), (x, y), method=method, damping=0.1, verbose=0)
    expected = g[:2] @ np.linalg.solve(matrix, g.T) / 20
    assert truth.relative_error(found.values, expected) < (0.2 if method == "ekfac" else 1e-4)


def _pixels(rng, n=40, features=300):
    """Linear regression on pixels of 0 to 255, in float32; scores of three examples in closed form, by λ."""
    set_precision("float32")
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    x = rng.integers(0, 256, (n, features)).astype("float32")
    train = x, rng.normal(size=(n, 1)).astype("float32")
    g = 2 * (x.astype(float) @ truth.get_flat(model)[:, None] - train[1]) * x
    # (2/n XᵀX + λ)⁻¹ of what is in the rows of X, without its p x p matrix.
    gram = 2 / n * x.astype(float) @ x.T.astype(float)

    def expected(damping):
        inside = np.linalg.solve(gram @ gram + damping * gram, x.astype(float) @ g.T)
        return g[:3] @ (2 / n * x.T.astype(float) @ inside) / n

    return model, (x[:3], train[1][:3]), train, expected


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
@pytest.mark.parametrize("method", ["auto", "cg"])
def test_unscaled_pixels_are_solved_by_default(rng, method, damping):
    """λ is a billionth of the largest eigenvalue and less: beside that it is rounding."""
    model, test, train, expected = _pixels(rng)
    found = ki.influence(model, test, train, method=method, damping=damping, verbose=0)
    assert found.curvature == "gauss_newton"
    assert truth.relative_error(found.values, expected(damping)) < 2e-4


def test_where_the_factor_has_led_away_the_plain_algorithm_answers(rng):
    """By contributions alone the residual is a thousand times the tolerance here."""
    model, test, train, expected = _pixels(rng, n=100, features=784)
    found = ki.influence(model, test, train, method="cg", damping=1e-6, verbose=0)
    assert found.converged.all()
    assert truth.relative_error(found.values, expected(1e-6)) < 2e-4


@pytest.mark.parametrize("scales", [[1, 1e3, 1e-3], np.logspace(-3, 3, 50), np.ones(200)])
@pytest.mark.parametrize("l2", [0, 1e-2])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_all_contributions_are_exact_or_said_not_to_be(scales, l2, damping, rng):
    """Rounding of the large columns hides the small ones; then the residual shows it."""
    set_precision("float32")
    regulariser = keras.regularizers.L2(l2) if l2 else None
    layer = keras.layers.Dense(1, use_bias=False, kernel_regularizer=regulariser)
    model = keras.Sequential([keras.Input((len(scales),)), layer])
    model.compile("sgd", "mse")
    x = (rng.normal(size=(30, len(scales))) * scales).astype("float32")
    y = rng.normal(size=(30, 1)).astype("float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        about = {"method": "woodbury", "damping": damping, "verbose": 0}
        found = ki.influence(model, (x[:3], y[:3]), (x, y), **about)
    x = x.astype(float)
    g = 2 * (x @ truth.get_flat(model)[:, None] - y) * x
    matrix = x.T @ x * 2 / 30 + (2 * l2 + damping) * np.eye(len(scales))
    expected = g[:3] @ np.linalg.solve(matrix, g.T) / 30
    warned = any(w.category is ki.ConvergenceWarning for w in caught)
    assert warned == (found.residual.max() > 1e-3)
    assert warned or truth.relative_error(found.values, expected) < 0.1
