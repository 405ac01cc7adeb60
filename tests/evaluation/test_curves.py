"""Wrong labels and removals against hand counts and closed forms; bad arguments of all."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import evaluation
from tests import truth
from tests.retraining import least_squares, linear_outputs, ridge_changes
from tests.truth import L2

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


def test_mislabel_curve_plants_and_finds(rng):
    y = rng.integers(0, 3, 90)
    x = 2 * np.eye(3)[y] + 0.5 * rng.normal(size=(90, 3))
    model = truth.softmax_model(3, 3, L2)
    curve = evaluation.mislabel_curve(model, (x, y), fraction=0.1, seed=1, tol=1e-6, verbose=0)
    labels, wrong = evaluation.plant_wrong_labels(y, 0.1, seed=1)
    assert (curve.wrong == wrong).all()
    # Self-influence by the closed form, at the minimum for the planted labels.
    closed = truth.SoftmaxRegression(x, labels, 3, L2)
    theta = closed.fit(np.zeros(12), tol=1e-10)
    g = closed.example_gradients(theta)
    expected = np.einsum(
        "np,pn->n", g, np.linalg.solve(closed.hessian(theta) + 0.01 * np.eye(12), g.T)
    )
    assert truth.relative_error(curve.scores["self-influence"], expected) < 1e-4
    assert curve.found_after(0.1)["self-influence"] > 0.8
    assert "self-influence" in repr(curve)


def test_mislabel_curve_with_a_fit_of_ones_own(rng):
    """The copy is trained by `fit` on the planted labels, and its losses are ranked."""
    y = rng.integers(0, 3, 30)
    x = rng.normal(size=(30, 3))
    theta = rng.normal(size=12)
    model = truth.softmax_model(3, 3, L2)
    seen = []

    def fit(model, data):
        seen.append(data["y"])
        truth.set_flat(model, theta)

    curve = evaluation.mislabel_curve(model, (x, y), seed=2, fit=fit, verbose=0)
    labels, _ = evaluation.plant_wrong_labels(y, 0.1, seed=2)
    assert (seen[0] == labels).all()
    closed = truth.SoftmaxRegression(x, labels, 3, L2)
    assert curve.scores["loss"] == pytest.approx(closed.losses(theta))


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
