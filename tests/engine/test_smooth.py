"""Hinge losses: their smooth versions, and where they stand in for them."""

import warnings

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.conftest import set_precision

T = 0.01  # the default temperature


def svm(loss="hinge", outputs=1):
    keras.utils.set_random_seed(0)
    l2 = keras.regularizers.L2(truth.L2)
    dense = keras.layers.Dense(outputs, kernel_regularizer=l2)
    model = keras.Sequential([keras.Input((4,)), dense])
    model.compile("sgd", loss)
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=(30, 4)), rng.choice([-1.0, 1.0], (30, 1))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def closed_form(model, x, y, t, damping):
    """Influence of the L2-regularised smooth hinge of a linear model, in NumPy."""
    theta = truth.get_flat(model)
    x = np.hstack([x, np.ones((len(x), 1))])
    slope = sigmoid((1 - y[:, 0] * (x @ theta)) / t)
    g = -(slope * y[:, 0])[:, None] * x
    penalty = np.diag([2 * truth.L2] * 4 + [0])
    hessian = (x.T * (slope * (1 - slope) / t)) @ x / len(x) + penalty
    return g @ np.linalg.solve(hessian + damping * np.eye(5), g.T) / len(x)


@pytest.mark.parametrize("labels", ["signs", "bits"])
@pytest.mark.parametrize("temperature", [1.0, 1e-4])
def test_the_formula(labels, temperature, rng):
    y = rng.choice([-1.0, 1.0], (6, 3))
    z = rng.normal(size=(6, 3))
    exact = temperature * np.logaddexp(0, (1 - y * z) / temperature)
    given = y if labels == "signs" else (y + 1) / 2
    found = np.asarray(ki.SmoothHinge(temperature, reduction="none")(given, z))
    assert np.allclose(found, exact.mean(1), rtol=1e-12, atol=1e-15)
    gap = found - np.asarray(keras.losses.hinge(given, z))
    assert (gap > -1e-12).all()
    assert (gap <= temperature * np.log(2) + 1e-12).all()


@pytest.mark.parametrize("loss", ["hinge", keras.losses.hinge, "Hinge", "SmoothHinge"])
def test_influence_of_a_linear_svm(loss, data):
    made = {"Hinge": keras.losses.Hinge, "SmoothHinge": lambda: ki.SmoothHinge(T)}
    model = svm(made[loss]() if loss in made else loss)
    exact = closed_form(model, *data, T, 0.01)
    if loss == "SmoothHinge":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = ki.influence(model, data, data, damping=0.01)
    else:
        with pytest.warns(ki.ObjectiveWarning, match="hinge has a kink.*temperature 0.01"):
            scores = ki.influence(model, data, data, damping=0.01)
    assert truth.relative_error(scores.values, exact) < 1e-6
    assert scores.curvature == "gauss_newton"


def test_every_question_takes_the_smooth_loss(data):
    model = svm()
    exact = closed_form(model, *data, T, 0.01)
    with pytest.warns(ki.ObjectiveWarning, match="kink"):
        found = ki.self_influence(model, data, damping=0.01)
    assert truth.relative_error(found, 30 * np.diag(exact)) < 1e-6
    with warnings.catch_warnings():  # Said once of a model.
        warnings.simplefilter("error")
        found = ki.group_influence(model, data, data, [[1, 2, 3]], damping=0.01)
    assert truth.relative_error(found[:, 0], exact[:, 1:4].sum(1)) < 1e-6


def test_an_explicit_curvature_takes_the_loss_as_it_is(data):
    """Without curvature of the data, H is the regulariser's 2 L2 on the kernel."""
    model = svm()
    x, y = np.hstack([data[0], np.ones((30, 1))]), data[1]
    g = -((1 - y * (x @ truth.get_flat(model))[:, None] > 0) * y) * x
    h = np.diag([2 * truth.L2] * 4 + [0]) + 0.01 * np.eye(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ki.influence(model, data, data, curvature="hessian", damping=0.01)
    assert truth.relative_error(scores.values, g @ np.linalg.solve(h, g.T) / 30) < 1e-6


def test_categorical_hinge_in_the_limit_of_small_differences(rng):
    """For two classes, one-hot, its derivatives are those of t log(1 + exp(s / t))."""
    x, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    train = x, np.eye(3)[labels]
    model = svm("categorical_hinge", 3)
    theta = truth.get_flat(model).reshape(5, 3)
    x1 = np.hstack([x, np.ones((30, 1))])
    z = x1 @ theta
    wrong = np.where(train[1] == 1, 0, z)
    pushed = np.eye(3)[wrong.argmax(1)] * (wrong.max(1) > 0)[:, None] - train[1]
    pushed[wrong.argmax(1) == labels] = -train[1][wrong.argmax(1) == labels]
    slope = sigmoid((1 + wrong.max(1) - (train[1] * z).sum(1)) / T)
    features = np.einsum("ni,nc->nic", x1, pushed).reshape(30, 15)
    g = slope[:, None] * features
    penalty = 2 * truth.L2 * np.repeat([1, 1, 1, 1, 0], 3)
    h = (features.T * (slope * (1 - slope) / T)) @ features / 30 + np.diag(penalty + 0.01)
    with pytest.warns(ki.ObjectiveWarning, match="categorical_hinge has a kink"):
        scores = ki.influence(model, train, train, damping=0.01)
    assert truth.relative_error(scores.values, g @ np.linalg.solve(h, g.T) / 30) < 1e-6


def test_the_model_keeps_its_own_loss(data):
    model = svm()
    before = model.evaluate(*data, verbose=0)
    with pytest.warns(ki.ObjectiveWarning):
        ki.influence(model, data, data)
    assert model.loss == "hinge"
    assert model.evaluate(*data, verbose=0) == before
    fn = model._compile_loss._flat_losses[0].loss.fn
    assert fn is keras.losses.hinge


@pytest.mark.slow
def test_one_output_of_several(rng):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")]
    model = keras.Model(inputs, outputs)
    x, y = rng.normal(size=(12, 4)), [rng.choice([-1.0, 1.0], (12, 1)), rng.normal(size=(12, 1))]
    found = []
    for loss in ("hinge", ki.SmoothHinge(T)):
        model.compile("sgd", [loss, "mse"], loss_weights=[0.5, 2.0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ki.ObjectiveWarning)
            found.append(ki.influence(model, (x, y), (x, y), damping=0.1).values)
    assert np.abs(found[0]).max() > 0
    assert truth.relative_error(*found) < 1e-9


def test_gauss_newton_names_the_way_out(data):
    with pytest.raises(ValueError, match=r"curvature='auto', or compile .*SmoothHinge\(\)"):
        ki.influence(svm(), data, data, curvature="gauss_newton")


def test_saved_with_the_model(data, tmp_path):
    model = svm(ki.SmoothHinge(0.25))
    model.save(tmp_path / "svm.keras")
    loaded = keras.models.load_model(tmp_path / "svm.keras")
    assert loaded.loss.temperature == 0.25
    assert loaded.evaluate(*data, verbose=0) == model.evaluate(*data, verbose=0)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "warm", None])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` should be a number > 0"):
        ki.SmoothHinge(temperature)


@pytest.mark.parametrize("loss", ["mae", keras.losses.MeanAbsoluteError])
def test_influence_of_a_median_regression(loss, data):
    """|d| becomes √(d² + t²) - t, whose derivatives are d / √(d² + t²) and t² / (d² + t²)^1.5."""
    model = svm(loss if isinstance(loss, str) else loss())
    x, y = data
    theta = truth.get_flat(model)
    rows = np.hstack([x, np.ones((30, 1))])
    d = rows @ theta - y[:, 0]
    root = np.sqrt(d**2 + T**2)
    g = (d / root)[:, None] * rows
    penalty = np.diag([2 * truth.L2] * 4 + [0])
    hessian = (rows.T * (T**2 / root**3)) @ rows / 30 + penalty + 0.01 * np.eye(5)
    with pytest.warns(ki.ObjectiveWarning, match="mean_absolute_error has a kink"):
        scores = ki.influence(model, data, data, damping=0.01)
    assert truth.relative_error(scores.values, g @ np.linalg.solve(hessian, g.T) / 30) < 1e-6


def test_the_curvature_far_from_the_kink_keeps_its_digits(rng):
    """Of house prices in dollars, in float32: the closed form t² / (r² + t²)^(3/2), which is all but zero."""
    set_precision("float32")
    x, t = rng.normal(size=(40, 3)), T
    y = 3e5 + x @ [8e4, 2e4, -1e4] + 2e4 * rng.normal(size=40)
    start = keras.initializers.Constant(3e5)
    dense = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=start)
    model = keras.Sequential([keras.Input((3,)), dense])
    model.compile("sgd", "mae")
    r, a = 3e5 - y, np.hstack([x, np.ones((40, 1))])
    g = a * (r / np.sqrt(r**2 + t**2))[:, None]
    hessian = a.T @ (a * (t**2 / (r**2 + t**2) ** 1.5)[:, None]) / 40
    expected = g[:3] @ np.linalg.solve(hessian + 0.01 * np.eye(4), g.T) / 40
    data = x.astype("float32"), y.astype("float32")[:, None]
    with pytest.warns(ki.ObjectiveWarning, match="mean_absolute_error has a kink"):
        found = ki.influence(model, tuple(d[:3] for d in data), data, damping=0.01)
    assert truth.relative_error(found.values, expected) < 1e-5
