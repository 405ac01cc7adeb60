"""Evaluation against closed forms, hand-computed ranks, and retraining done by hand."""

import json

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import evaluation
from keras_influence.evaluation import agreement
from keras_influence.evaluation.datamodels import SubsetOutputs
from tests import truth
from tests.conftest import set_precision
from tests.truth import L2


def ridge_problem(rng, n=40):
    x = rng.normal(size=(n, 4))
    y = x @ rng.normal(size=4) + rng.normal(size=n)
    x_test, y_test = rng.normal(size=(3, 4)), rng.normal(size=3)
    return (x, y[:, None]), (x_test, y_test[:, None])


def ridge_changes(train, test, groups):
    """Closed form: change of the test losses when each group has weight 0, n unchanged."""
    (x, y), (x_test, y_test) = train, test

    def losses(weights):
        theta = truth.ridge_fit(x, y[:, 0], L2, weights)
        return (y_test[:, 0] - x_test @ theta) ** 2

    changes = []
    for group in groups:
        kept = np.ones(len(x))
        kept[group] = 0
        changes.append(losses(kept) - losses(np.ones(len(x))))
    return np.array(changes)


def least_squares(model, data):
    """A `fit` with a closed form: no randomness, exact."""
    y, weight = data["y"][:, 0], data.get("sample_weight")
    truth.set_flat(model, truth.ridge_fit(data["x"], y, L2, weight))


@pytest.fixture
def ridge(rng):
    train, test = ridge_problem(rng)
    model = truth.ridge_model(4, L2)
    return model, train, test


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
    groups = np.arange(40)
    scores = -ridge_changes(train, test, groups).T
    result = evaluation.leave_one_out(
        model, test, train, groups, scores=scores, tol=1e-8, verbose=0
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


# ---- linear datamodelling score


def linear_outputs(rng, n_test=4, n_train=12, subsets=30):
    """Outputs that are exactly linear in who is in the subset, and their coefficients."""
    effects = rng.normal(size=(n_test, n_train))
    masks = np.stack([rng.permutation(n_train) < n_train // 2 for _ in range(subsets)])
    outputs = masks @ effects.T + rng.normal(size=n_test)
    return effects, SubsetOutputs(outputs[:, None], masks, (0,), "test loss")


def test_lds_of_linear_outputs_is_one(rng):
    effects, outputs = linear_outputs(rng)
    # Being in the subset adds `effects`; being left out takes them away.
    score = evaluation.lds(-effects, outputs)
    assert score.mean == pytest.approx(1)
    assert score.interval == pytest.approx((1, 1))
    assert float(score) == score.mean
    assert evaluation.lds(effects, outputs).mean == pytest.approx(-1)


def test_lds_is_the_mean_spearman_by_hand():
    masks = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
    # Two seeds each, with means 2, 4, 0.5, 3: ranks 2 4 1 3.
    by_seed = np.array([[[1.0], [3.0]], [[4.0], [4.0]], [[0.0], [1.0]], [[3.0], [3.0]]])
    outputs = SubsetOutputs(by_seed, masks, (0, 1), "test loss")
    # Left out are {1, 2}, {0, 2}, {0, 1} and {2}, with sums of scores 5, 6, 1, 5: ranks
    # 2.5 4 1 2.5. Centred products 0.0 + 2.25 + 2.25 + 0.0 over norms √5 and √4.5.
    score = evaluation.lds(np.array([[1.0, 0.0, 5.0]]), outputs)
    assert score.mean == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_lds_interval_covers_its_mean_and_widens(rng):
    effects, outputs = linear_outputs(rng, n_test=30)
    noisy = -effects + 2 * rng.normal(size=effects.shape)
    narrow, wide = (evaluation.lds(noisy, outputs, confidence=c) for c in (0.5, 0.99))
    assert wide.interval[0] < narrow.interval[0] < narrow.mean < narrow.interval[1]
    assert narrow.interval[1] < wide.interval[1]
    standard_error = narrow.correlations.std() / np.sqrt(30)
    assert wide.interval[1] - wide.interval[0] == pytest.approx(2 * 2.58 * standard_error, rel=0.2)


def test_subset_outputs_are_those_of_models_of_the_subsets(ridge):
    model, train, test = ridge
    for fit in (None, least_squares):
        found = evaluation.subset_outputs(
            model, test, train, fit=fit, subsets=3, seeds=(0, 1), tol=1e-8, verbose=0
        )
        assert found.outputs.shape == (3, 1 if fit is None else 2, 3)
        assert (found.masks.sum(1) == 20).all()
        assert len(np.unique(found.masks, axis=0)) == 3
        for mask, outputs in zip(found.masks, found.outputs):
            theta = truth.ridge_fit(train[0][mask], train[1][mask, 0], L2)
            expected = (test[1][:, 0] - test[0] @ theta) ** 2
            assert truth.relative_error(outputs[0], expected) < 1e-5


class Counted:
    """A `fit` that counts, and can fail."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, model, data):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("power cut")
        model.fit(**data, epochs=1, verbose=0)


def test_subset_outputs_resume(ridge, tmp_path):
    model, train, test = ridge
    settings = {"subsets": 4, "seeds": (0, 1), "verbose": 0}
    whole = evaluation.subset_outputs(model, test, train, fit=Counted(), **settings)
    cut = Counted(fail_at=6)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluation.subset_outputs(model, test, train, fit=cut, folder=tmp_path, **settings)
    rest = Counted()
    resumed = evaluation.subset_outputs(model, test, train, fit=rest, folder=tmp_path, **settings)
    assert rest.calls == 8 - 5
    assert (resumed.outputs == whole.outputs).all()
    assert (resumed.masks == whole.masks).all()
    again = Counted()
    more = evaluation.subset_outputs(
        model, test, train, fit=again, folder=tmp_path, subsets=5, seeds=(0, 1), verbose=0
    )
    assert again.calls == 2
    assert (more.outputs[:4] == whole.outputs).all()
    assert not list(tmp_path.glob("*.partial"))


def test_seeds_matter_and_repeat(ridge):
    model, train, test = ridge
    found = evaluation.subset_outputs(
        model, test, train, fit=Counted(), subsets=2, seeds=(0, 1), verbose=0
    ).outputs
    again = evaluation.subset_outputs(
        model, test, train, fit=Counted(), subsets=2, seeds=(1, 0), verbose=0
    ).outputs
    assert (found == again[:, ::-1]).all()
    assert (found[:, 0] != found[:, 1]).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("train", "train"),
        ("fraction", "fraction"),
        ("seed", "seed"),
        ("model", "model"),
        ("fit", "fit"),
        ("target", "target"),
        ("test", "test"),
    ],
)
def test_a_folder_of_other_settings_is_refused(ridge, tmp_path, change, word):
    model, train, test = ridge
    settings = {"fit": least_squares, "subsets": 2, "seeds": (0,), "folder": tmp_path, "verbose": 0}
    evaluation.subset_outputs(model, test, train, **settings)
    if change == "train":
        train = (train[0] + 1, train[1])
    elif change == "test":
        test = (test[0] + 1, test[1])
    elif change == "model":
        model = truth.ridge_model(4, 2 * L2)
    else:
        settings[change] = {
            "fraction": 0.4,
            "seed": 1,
            "fit": Counted(),
            "target": lambda x, y, p: p[:, 0],
        }[change]
    with pytest.raises(ValueError, match=f"`folder` holds results of other settings: {word}"):
        evaluation.subset_outputs(model, test, train, **settings)


def test_a_new_model_of_the_same_kind_resumes(ridge, tmp_path):
    """Names that Keras counts up in a process are no change of the model."""
    _, train, test = ridge
    for calls in (2, 0):
        fit = Counted()
        evaluation.subset_outputs(
            truth.ridge_model(4, L2),
            test,
            train,
            fit=fit,
            subsets=2,
            seeds=(0,),
            folder=tmp_path,
            verbose=0,
        )
        assert fit.calls == calls
    assert "train" in json.loads((tmp_path / "settings.json").read_text())


# ---- wrong labels


def test_planted_labels_are_wrong_and_repeat():
    y = np.arange(100) % 4
    labels, wrong = evaluation.plant_wrong_labels(y, 0.2, seed=3)
    assert wrong.sum() == 20
    assert ((labels != y) == wrong).all()
    assert set(labels) == {0, 1, 2, 3}
    again, _ = evaluation.plant_wrong_labels(y, 0.2, seed=3)
    assert (labels == again).all()
    assert (labels != evaluation.plant_wrong_labels(y, 0.2, seed=4)[0]).any()
    one_hot, also = evaluation.plant_wrong_labels(np.eye(4)[y], 0.2, seed=3)
    assert (one_hot.argmax(1) == labels).all()
    assert (also == wrong).all()
    column, _ = evaluation.plant_wrong_labels(y[:, None] + 5, 0.2, seed=3)
    assert (column[:, 0] == labels + 5).all()


def test_mislabel_curve_counts_by_hand(rng):
    x, y = rng.normal(size=(5, 3)), np.array([0, 1, 0, 1, 0])
    model = truth.softmax_model(3, 2, L2)
    curve = evaluation.mislabel_curve(
        model, (x, y), [1, 4], rankings={"mine": [0.0, 5, 3, 1, 2]}, verbose=0
    )
    # Order 1 2 4 3 0: the wrong ones come first and third.
    assert curve.found["mine"] == pytest.approx([0.5, 0.5, 1, 1, 1])
    # Trapezoids of 0 .5 .5 1 1 1, each of width 1/5.
    assert curve.area["mine"] == pytest.approx((0.25 + 0.5 + 0.75 + 1 + 1) / 5)
    assert curve.area["random"] == pytest.approx(0.5)
    assert curve.best_area == pytest.approx(0.8)
    assert curve.found_after(0.4) == pytest.approx({k: v[1] for k, v in curve.found.items()})
    closed = truth.SoftmaxRegression(x, y, 2, L2)
    assert curve.scores["loss"] == pytest.approx(closed.losses(truth.get_flat(model)))


def test_mislabel_curve_plants_and_finds():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.data[:300] / 16, digits.target[:300]
    model = truth.softmax_model(64, 10, 1 / 64)
    curve = evaluation.mislabel_curve(model, (x, y), fraction=0.1, seed=1, verbose=0)
    labels, wrong = evaluation.plant_wrong_labels(y, 0.1, seed=1)
    assert (curve.wrong == wrong).all()
    # Self-influence by the closed form at the minimum for the planted labels.
    closed = truth.SoftmaxRegression(x, labels, 10, 1 / 64)
    theta = closed.fit(np.zeros(650), tol=1e-10)
    g = closed.example_gradients(theta)
    h = closed.hessian(theta) + 0.01 * np.eye(650)
    expected = np.einsum("np,pn->n", g, np.linalg.solve(h, g.T))
    assert truth.relative_error(curve.scores["self-influence"], expected) < 1e-3
    assert curve.found_after(0.2)["self-influence"] > 0.7
    assert "self-influence" in repr(curve)


# ---- removal


def test_removal_curve_is_closed_form_ridge(ridge):
    model, train, test = ridge
    curve = evaluation.removal_curve(
        model, test, train, counts=(1, 4), repeats=2, seed=5, damping=0.0, tol=1e-8, verbose=0
    )
    truth.set_flat(model, truth.ridge_fit(train[0], train[1][:, 0], L2))
    scores = ki.influence(model, test, train, damping=0.0)
    top = scores.top(4)
    for column, k in enumerate((1, 4)):
        groups = [row[:k] for row in top.indices]
        expected = np.diag(ridge_changes(train, test, groups))
        assert truth.relative_error(curve.top[:, column], expected) < 1e-5
        assert truth.relative_error(curve.predicted[:, column], top.values[:, :k].sum(1)) < 1e-5
    rng = np.random.default_rng(5)
    for r in range(2):
        order = rng.permutation(40)
        expected = ridge_changes(train, test, [order[:1], order[:4]]).T
        assert truth.relative_error(curve.random[r], expected) < 1e-5
    assert "top proponents" in repr(curve)


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


# ---- bad arguments


BAD = {
    "indices range": ("leave_one_out", {"indices": [40]}, ValueError, "`indices`"),
    "indices kind": ("leave_one_out", {"indices": [0.5]}, TypeError, "`indices`"),
    "scores shape": (
        "leave_one_out",
        {"indices": [0], "scores": np.ones((3, 4))},
        ValueError,
        "`scores`",
    ),
    "scores nan": ("removal_curve", {"scores": np.full((3, 40), np.nan)}, ValueError, "`scores`"),
    "fit": ("leave_one_out", {"indices": [0], "fit": 3}, TypeError, "`fit`"),
    "seeds none": ("leave_one_out", {"indices": [0], "seeds": ()}, ValueError, "`seeds`"),
    "seeds number": ("removal_curve", {"seeds": 3}, TypeError, "`seeds`"),
    "seeds twice": ("removal_curve", {"seeds": (1, 1)}, ValueError, "`seeds`"),
    "tol": ("leave_one_out", {"indices": [0], "tol": 0}, ValueError, "`tol`"),
    "max_iter": ("leave_one_out", {"indices": [0], "max_iter": 0}, ValueError, "`max_iter`"),
    "proximal": ("leave_one_out", {"indices": [0], "proximal": -1}, ValueError, "`proximal`"),
    "proximal fit": (
        "leave_one_out",
        {"indices": [0], "proximal": 1.0, "fit": least_squares},
        ValueError,
        "`proximal`",
    ),
    "target": ("leave_one_out", {"indices": [0], "target": 1}, TypeError, "`target`"),
    "damping": ("verify", {"damping": -1}, ValueError, "`damping`"),
    "removals": ("verify", {"removals": -1}, ValueError, "`removals`"),
    "verbose": ("leave_one_out", {"indices": [0], "verbose": 7}, ValueError, "`verbose`"),
    "counts kind": ("removal_curve", {"counts": [0.5]}, TypeError, "`counts`"),
    "counts range": ("removal_curve", {"counts": [40]}, ValueError, "`counts`"),
    "repeats": ("removal_curve", {"repeats": 0}, ValueError, "`repeats`"),
    "fraction": ("subset_outputs", {"fraction": 1.0}, ValueError, "`fraction`"),
    "subsets": ("subset_outputs", {"subsets": 1}, ValueError, "`subsets`"),
    "wrong": ("mislabel_curve", {"wrong": [50]}, ValueError, "`wrong`"),
    "rankings": ("mislabel_curve", {"wrong": [0], "rankings": {"a": [1]}}, ValueError, "`rankings"),
    "rankings kind": ("mislabel_curve", {"wrong": [0], "rankings": [1]}, TypeError, "`rankings`"),
    "planted fraction": ("mislabel_curve", {"fraction": 0}, ValueError, "`fraction`"),
}


@pytest.mark.parametrize(("name", "options", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(ridge, name, options, error, words):
    model, train, test = ridge
    arguments = (train,) if name in ("verify", "mislabel_curve") else (test, train)
    with pytest.raises(error, match=words):
        getattr(evaluation, name)(model, *arguments, **{"verbose": 0, **options})


def test_fit_needs_arrays(ridge):
    import tensorflow as tf

    model, train, test = ridge
    dataset = tf.data.Dataset.from_tensor_slices(train).batch(8)
    with pytest.raises(TypeError, match="`train`"):
        evaluation.leave_one_out(model, test, dataset, [0], fit=least_squares, verbose=0)
    result = evaluation.leave_one_out(model, test, dataset, [0], tol=1e-8, verbose=0)
    assert truth.relative_error(result.actual, ridge_changes(train, test, [0]).T) < 1e-5


def test_a_fit_that_diverges_is_refused(ridge):
    def diverging(model, data):
        truth.set_flat(model, np.full(4, np.nan))

    model, train, test = ridge
    with pytest.raises(ValueError, match="`fit` left NaN"):
        evaluation.leave_one_out(model, test, train, [0], fit=diverging, verbose=0)


def test_lds_refuses_what_does_not_fit(rng):
    effects, outputs = linear_outputs(rng)
    with pytest.raises(TypeError, match="`outputs`"):
        evaluation.lds(effects, effects)
    with pytest.raises(ValueError, match="`scores`"):
        evaluation.lds(effects.T, outputs)
    with pytest.raises(ValueError, match="`confidence`"):
        evaluation.lds(effects, outputs, confidence=1.0)
    with pytest.raises(ValueError, match="`resamples`"):
        evaluation.lds(effects, outputs, resamples=0)


def test_lds_refuses_scores_of_another_target(ridge):
    model, train, test = ridge
    outputs = evaluation.subset_outputs(
        model, test, train, fit=least_squares, subsets=2, seeds=(0,), verbose=0
    )

    def output(x, y, y_pred):
        return y_pred[:, 0]

    scores = ki.influence(model, test, train, target=output)
    with pytest.raises(ValueError, match="the same target"):
        evaluation.lds(scores, outputs)


@pytest.mark.parametrize("y", [np.zeros(5, int), np.array([0.5, 1.0]), np.zeros((3, 2, 2))])
def test_labels_that_are_none_are_refused(y):
    with pytest.raises((ValueError, TypeError), match="`y`"):
        evaluation.plant_wrong_labels(y)


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
