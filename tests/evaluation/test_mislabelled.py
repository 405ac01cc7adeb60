"""Wrong labels, planted and found, against hand counts and closed forms."""

import numpy as np
import pytest

from keras_influence import evaluation
from tests import truth
from tests.truth import L2


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "y",
    [
        np.zeros(5, int),
        np.array([0.5, 1.0]),
        np.zeros((3, 2, 2)),
        np.array(["cat", "dog"]),
        np.array([[0.5, 1.5], [0.2, 0.1]]),  # Two numbers to be predicted.
        np.array([[1, 1, 0], [0, 1, 0]]),  # Classes that do not exclude each other.
        [np.zeros(4), np.zeros((4, 2))],  # Of two outputs.
        {"a": np.arange(2)},
    ],
)
def test_labels_that_are_none_are_refused(y):
    with pytest.raises((ValueError, TypeError), match="`y`"):
        evaluation.plant_wrong_labels(y)
