"""Evaluation against closed forms and retraining done by hand; the model stays as it was."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import evaluation
from keras_influence.evaluation import agreement
from tests import truth
from tests.conftest import set_precision
from tests.retraining import (
    Counted,
    least_squares,
    linear_outputs,
    ridge_changes,
    ridge_problem,
)
from tests.truth import L2

# ---- agreement


def test_agreement_by_hand():
    a, b = [1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 · (0 + 1 + 1 + 0) / (4 · 15).
    assert agreement.spearman(a, b) == pytest.approx(0.8)
    # Ties share ranks: 1.5 1.5 3 and 1 2 3, so 1.5 / sqrt(1.5 · 2).
    assert agreement.spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3))
    # Centred: -1.5 -.5 .5 1.5 and -15 5 -5 15: 40 / sqrt(5 · 500).
    assert agreement.pearson(a, b) == pytest.approx(0.8)
    assert agreement.slope(a, b) == pytest.approx(8.0)
    assert agreement.slope(a, -np.array(b)) == pytest.approx(-8.0)
    assert np.isnan(agreement.pearson([1, 1], [1, 2]))
    assert np.isnan(agreement.slope([1, 1], [1, 2]))


# ---- leave-one-out


def test_leave_one_out_is_closed_form_ridge(ridge):
    model, train, test = ridge
    indices = [3, 0, 17, 39]
    result = evaluation.leave_one_out(model, test, train, indices, damping=0.0, tol=1e-8, verbose=0)
    expected = ridge_changes(train, test, indices).T
    assert truth.relative_error(result.actual, expected) < 1e-6
    assert (result.indices == indices).all()
    assert result.gradients.max() < 1e-7
    # The scores are of the minimum, though the model was not there.
    x, y = train[0], train[1][:, 0]
    theta = truth.ridge_fit(x, y, L2)
    h = 2 * x.T @ x / len(x) + 2 * L2 * np.eye(4)
    g = 2 * (x @ theta - y)[:, None] * x
    g_test = 2 * (test[0] @ theta - test[1][:, 0])[:, None] * test[0]
    scores = g_test @ np.linalg.solve(h, g[indices].T) / len(x)
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
    with pytest.warns(ki.ConvergenceWarning, match="`max_iter`"):
        evaluation.leave_one_out(model, (x[:1], y[:1]), (x, y), [0], max_iter=1, verbose=0)


# ---- verify


def test_verify_says_that_a_good_model_is_good(rng):
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, L2, cls=ki.InfluenceModel)
    truth.set_flat(model, truth.SoftmaxRegression(x, y, 3, L2).fit(truth.get_flat(model)))
    found = model.verify((x, y), removals=6, verbose=0)
    assert found.ok
    assert found.hvp_error < 1e-6
    assert found.gradient < 1e-6
    assert found.retrained.pearson > 0.99
    assert "at a minimum" in repr(found)
    assert type(model).verify is evaluation.verify is ki.verify


def test_verify_sees_a_wrong_second_derivative(rng):
    """A layer that stops part of its gradient has products that no difference confirms."""
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class Stopped(keras.layers.Layer):
        def call(self, x):
            @tf.custom_gradient
            def odd(t):
                # The first derivative of t² is right; its own derivative is stopped.
                return t**2, lambda d: d * 2 * tf.stop_gradient(t)

            return odd(x)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Stopped()(keras.layers.Dense(2)(inputs)))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    found = evaluation.verify(model, (x, y), removals=0, damping=10.0, verbose=0)
    assert not found.ok
    assert found.hvp_error > 0.01
    assert "do NOT agree" in repr(found)
    assert found.retrained is None
    with pytest.raises(ValueError, match="removals"):
        found.plot()


def test_verify_sees_that_training_stopped_early(rng):
    x, y = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    model = truth.softmax_model(3, 3, L2)
    found = evaluation.verify(model, (x, y), (x[:2], y[:2]), removals=2, verbose=0)
    assert found.gradient > 10
    assert "stopped away from a minimum" in repr(found)


# ---- the model stays as it was


def state_of(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def broken(model, data):
    truth.set_flat(model, np.ones(4))
    raise RuntimeError("power cut")


CALLS = {
    "leave_one_out": lambda m, t, d, **k: evaluation.leave_one_out(m, t, d, [0, 1], **k),
    "subset_outputs": lambda m, t, d, **k: evaluation.subset_outputs(m, t, d, subsets=2, **k),
    "removal_curve": lambda m, t, d, **k: evaluation.removal_curve(m, t, d, counts=[2], **k),
}


@pytest.mark.parametrize("fit", [None, Counted(), broken], ids=["lbfgs", "fit", "broken"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_is_left_as_it_was(ridge, call, fit):
    import random

    model, train, test = ridge
    model.fit(*train, verbose=0)
    before = state_of(model)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1]
    if fit is broken:
        with pytest.raises(RuntimeError, match="power cut"):
            call(model, test, train, fit=fit, verbose=0)
    else:
        call(model, test, train, fit=fit, verbose=0)
    assert all((a == b).all() for a, b in zip(before, state_of(model)))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert keras.config.floatx() == "float64"


def test_precision_is_restored_after_an_exception(ridge):
    model, train, test = ridge
    set_precision("float32")
    with pytest.raises(ValueError, match="`train`"):
        evaluation.verify(model, (train[0][:, :2], train[1]), verbose=0)
    assert keras.config.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"


# ---- pictures and progress


def test_plots_are_drawn(ridge, rng, tmp_path):
    model, train, test = ridge
    loo = evaluation.leave_one_out(model, test, train, [0, 1, 2], verbose=0)
    axis = loo.plot().axes[0]
    assert axis.get_title() == f"Pearson {loo.pearson:.4f}, slope {loo.slope:.3f}"
    assert axis.collections[0].get_offsets().shape == (9, 2)
    curve = evaluation.removal_curve(model, test, train, counts=(1, 2), verbose=0)
    drawn = curve.plot().axes[0].lines[0].get_xydata()
    assert drawn == pytest.approx(np.column_stack([(1, 2), curve.top.mean(0)]))
    effects, outputs = linear_outputs(rng)
    assert evaluation.lds(effects, outputs).plot().axes[0].get_title() == "LDS -1.000"
    wrong = evaluation.MislabelCurve(
        {"a": np.array([0, 1.0])}, {"a": np.arange(2)}, np.array([True, False])
    )
    assert wrong.plot().axes[0].lines[0].get_xydata()[-1] == pytest.approx([1, 1])


def test_progress_is_shown_when_asked(ridge, capsys):
    model, train, test = ridge
    evaluation.leave_one_out(model, test, train, [0, 1], verbose=1)
    assert "Retrain 2 times" in capsys.readouterr().out
    evaluation.subset_outputs(model, test, train, fit=least_squares, subsets=2, verbose=1)
    assert "Models of 2 subsets x 3 seeds" in capsys.readouterr().out
    evaluation.leave_one_out(model, test, train, [0, 1], verbose=0)
    assert capsys.readouterr().out == ""
