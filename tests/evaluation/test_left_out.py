"""Leave-one-out against closed forms and retraining done by hand."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import evaluation
from tests import truth
from tests.conftest import set_precision
from tests.retraining import least_squares, ridge_changes, ridge_problem, ridge_scores
from tests.truth import L2
from tests.zoo import Reconstruction


def test_leave_one_out_is_closed_form_ridge(ridge):
    model, train, test = ridge
    indices = [3, 0, 17, 39]
    result = evaluation.leave_one_out(model, test, train, indices, damping=0.0, tol=1e-8, verbose=0)
    expected = ridge_changes(train, test, indices).T
    assert truth.relative_error(result.actual, expected) < 1e-6
    assert (result.indices == indices).all()
    assert result.gradients.max() < 1e-7
    # The scores are of the minimum, though the model was not there.
    scores = ridge_scores(train, test)[:, indices]
    assert truth.relative_error(result.predicted, scores) < 1e-6
    assert result.pearson == pytest.approx(np.corrcoef(scores.ravel(), expected.ravel())[0, 1])
    assert result.slope == pytest.approx(np.polyfit(scores.ravel(), expected.ravel(), 1)[0])


@pytest.mark.parametrize("batch_size", [7, None])
def test_leave_one_out_in_float32_is_retrained_in_float64(rng, batch_size):
    set_precision("float32")
    train, test = ridge_problem(rng)
    model = truth.ridge_model(4, L2)
    result = evaluation.leave_one_out(
        model, test, train, [1, 2], tol=1e-6, batch_size=batch_size, verbose=0
    )
    assert truth.relative_error(result.actual, ridge_changes(train, test, [1, 2]).T) < 1e-5
    assert keras.config.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"
    assert model.variables[0].dtype == "float32"


def test_leave_one_out_of_a_summed_loss(rng):
    train, test = ridge_problem(rng)
    model = truth.ridge_model(4, L2 * 40)
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    result = evaluation.leave_one_out(model, test, train, [5], damping=0.0, tol=1e-8, verbose=0)
    assert truth.relative_error(result.actual, ridge_changes(train, test, [5]).T) < 1e-6


def test_leave_one_out_with_a_fit_of_ones_own(ridge):
    model, train, test = ridge
    result = evaluation.leave_one_out(
        model, test, train, [4, 9], fit=least_squares, seeds=(0, 1), verbose=0
    )
    assert truth.relative_error(result.actual, ridge_changes(train, test, [4, 9]).T) < 1e-8
    assert np.isnan(result.gradients).all()
    assert "2 seeds" in repr(result)


def test_a_fit_by_keras_weighs_out_the_example(ridge):
    """One full-batch SGD step from seeded weights, against the same step by hand."""
    model, train, test = ridge
    model.compile(keras.optimizers.SGD(0.1), "mse")
    starts = []

    def step(model, data):
        starts.append(truth.get_flat(model))
        model.fit(**data, epochs=1, batch_size=40, verbose=0)

    result = evaluation.leave_one_out(model, test, train, [7], fit=step, verbose=0)
    assert (starts[0] == starts[1]).all()
    x, y = train[0], train[1][:, 0]

    def loss_after(weights):
        slope = 2 * x.T @ (weights * (x @ starts[0] - y)) / 40 + 2 * L2 * starts[0]
        return (test[1][:, 0] - test[0] @ (starts[0] - 0.1 * slope)) ** 2

    kept = np.ones(40)
    kept[7] = 0
    expected = loss_after(kept) - loss_after(np.ones(40))
    # Keras keeps a learning rate in float32.
    assert truth.relative_error(result.actual[:, 0], expected) < 1e-5


def test_leave_one_out_of_a_target(ridge):
    model, train, test = ridge

    def output(x, y, y_pred):
        return y_pred[:, 0]

    result = evaluation.leave_one_out(
        model, test, train, [2], target=output, damping=0.0, tol=1e-8, verbose=0
    )
    x, y = train[0], train[1][:, 0]
    kept = np.ones(40)
    kept[2] = 0
    expected = test[0] @ (truth.ridge_fit(x, y, L2, kept) - truth.ridge_fit(x, y, L2))
    assert truth.relative_error(result.actual[:, 0], expected) < 1e-6
    assert result.target == "output"


def test_wrong_signed_scores_have_slope_minus_one(ridge):
    model, train, test = ridge
    groups = np.arange(8)
    scores = np.zeros((3, 40))
    scores[:, :8] = -ridge_changes(train, test, groups).T
    result = evaluation.leave_one_out(
        model, test, train, groups, scores=scores, tol=1e-7, verbose=0
    )
    assert result.slope == pytest.approx(-1, abs=1e-5)
    assert result.pearson == pytest.approx(-1, abs=1e-8)


def test_proximal_retraining_is_closed_form(ridge):
    """With ½ρ‖θ - θ₀‖² in the loss, the minimum solves (H + ρI)θ = c + ρθ₀."""
    model, train, test = ridge
    rho, x, y = 0.3, train[0], train[1][:, 0]
    theta0 = truth.get_flat(model)

    def losses(weights):
        h = 2 * (x.T * weights) @ x / 40 + (2 * L2 + rho) * np.eye(4)
        theta = np.linalg.solve(h, 2 * x.T @ (weights * y) / 40 + rho * theta0)
        return (test[1][:, 0] - test[0] @ theta) ** 2

    kept = np.ones(40)
    kept[6] = 0
    result = evaluation.leave_one_out(
        model, test, train, [6], damping=rho, proximal=rho, tol=1e-8, verbose=0
    )
    expected = losses(kept) - losses(np.ones(40))
    assert truth.relative_error(result.actual[:, 0], expected) < 1e-6


def test_too_few_iterations_are_reported(rng):
    x, y = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
    model = truth.softmax_model(6, 3, L2)
    with pytest.warns(ki.ConvergenceWarning, match="`max_iter`") as caught:
        evaluation.leave_one_out(model, (x[:1], y[:1]), (x, y), [0], max_iter=1, verbose=0)
    # At the user's line, not somewhere in the package.
    assert {w.filename for w in caught if w.category is ki.ConvergenceWarning} == {__file__}


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_fit_by_keras_weighs_out_the_example_in_each_output(names, rng):
    """Weights of two outputs are two arrays: it is not the output of that number that is left out."""

    def nested(parts):
        return parts if names is None else dict(zip(names, parts))

    inputs = keras.Input((3,))
    heads = [keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")]
    model = keras.Model(inputs, nested(heads))
    model.compile("sgd", nested(["mse", "mse"]))
    x, y = rng.normal(size=(6, 3)), nested([rng.normal(size=(6, 1)), rng.normal(size=(6, 1))])
    weights, seen = [rng.uniform(1, 2, 6), rng.uniform(1, 2, 6)], []

    def fit(model, data):
        seen.append(data["sample_weight"])
        model.fit(**data, verbose=0)

    train = (x, y, nested(weights))
    evaluation.leave_one_out(model, train, train, [1], fit=fit, verbose=0)
    expected = [np.where(np.arange(6) == 1, 0, w) for w in weights]
    found = seen[-1] if names is None else [seen[-1][name] for name in names]
    assert np.array_equal(found, expected)
    assert np.min(weights) >= 1  # The user's own are as they were.


@pytest.mark.parametrize("adds", [True, False])
def test_what_layers_add_for_an_example_is_not_left_out_by_fit(adds, rng, recwarn):
    inputs = keras.Input((3,))
    hidden = keras.layers.ActivityRegularization(l2=0.1 * adds)(keras.layers.Dense(2)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse")
    train = rng.normal(size=(6, 3)), rng.normal(size=(6, 1))
    fit = lambda model, data: model.fit(**data, verbose=0)
    evaluation.leave_one_out(model, train, train, [1], fit=fit, verbose=0)
    assert any("there it still counts" in str(w.message) for w in recwarn) == adds


def test_a_fit_without_labels_says_what_to_give(rng):
    x = rng.normal(size=(6, 3))
    model = Reconstruction()
    model(x)
    model.compile("sgd")
    fit = lambda model, data: model.fit(**data, verbose=0)
    for train in ((x,), (x, None)):
        with pytest.raises(ValueError, match="`train` should have labels where `fit` is given"):
            evaluation.leave_one_out(model, train, train, [1], fit=fit, verbose=0)
    train = x, np.zeros(6)
    found = evaluation.leave_one_out(model, train, train, [1], fit=fit, verbose=0)
    assert found.actual.all()
