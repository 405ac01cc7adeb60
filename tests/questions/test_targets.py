"""Targets other than the test loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.questions.models import network
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, 3, 24)


def margin(x, y, y_pred):
    """Log-odds of the true class."""
    right = keras.ops.sum(y_pred * keras.ops.one_hot(y, 3, dtype=y_pred.dtype), axis=-1)
    return keras.ops.log(right) - keras.ops.log(1 - right)


LIMIT = 2.0


def beyond(x, y, y_pred):
    """A class's probability, and another's where an input exceeds a global."""
    return keras.ops.where(x[:, 0] > LIMIT, y_pred[:, 2], y_pred[:, 1])


TARGETS = {
    "margin": margin,
    "a probability": lambda x, y, y_pred: y_pred[:, 1],
    "a column": lambda x, y, y_pred: y_pred[:, :1],
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_other_than_the_loss(name, data):
    """The target's derivative by finite differences, the rest in closed form."""
    model = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(*data, 3, L2)
    theta = truth.get_flat(model)
    target = TARGETS[name]

    def values(theta):
        p = truth.softmax(closed.x @ theta.reshape(5, 3))
        return np.asarray(target(*data, keras.ops.convert_to_tensor(p))).ravel()

    slopes = np.array([(values(theta + e) - values(theta - e)) / 2e-5 for e in 1e-5 * np.eye(15)]).T
    g = closed.example_gradients(theta)
    expected = slopes @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 24
    scores = ki.influence(model, data, data, damping=0.1, target=target)
    assert truth.relative_error(scores.values, expected) < 1e-7
    assert f"predicted change of {scores.target}" in repr(scores)


def test_two_targets_in_turn_do_not_mix(data):
    model = truth.softmax_model(4, 3, L2)
    first, second, again = (
        ki.influence(model, data, data, damping=0.1, target=t).values
        for t in (TARGETS["margin"], TARGETS["a probability"], TARGETS["margin"])
    )
    assert (first == again).all()
    assert truth.relative_error(first, second) > 0.1


@pytest.mark.parametrize("method", ["cg", "ekfac", "direct"])
def test_a_target_without_a_finite_gradient_is_named_with_its_example(method, rng):
    """The root of a square that is zero, at the prediction of the third example."""
    model = network()
    x, y = rng.normal(size=(8, 4)), rng.integers(0, 3, 8)
    at = float(model.predict(x[2:3], verbose=0)[0, 0])

    def distance(x, y, y_pred):
        return keras.ops.sqrt(keras.ops.square(y_pred[:, 0] - at))

    about = {"target": distance, "method": method, "damping": 0.1, "verbose": 0}
    with pytest.raises(ValueError, match="`target` has a gradient .* example 2 of `test`"):
        ki.influence(model, (x[:4], y[:4]), (x, y), **about)
    with pytest.raises(ValueError, match="`target` has a gradient .* example 2 of `test`"):
        ki.group_influence(model, (x[:4], y[:4]), (x, y), [[0]], **about)


def test_a_target_takes_test_examples_without_labels(data):
    model, (x, y) = truth.softmax_model(4, 3, L2), data
    about = {"train": data, "damping": 0.1, "target": TARGETS["a probability"]}
    expected = ki.influence(model, (x[:5], y[:5]), **about).values
    for test in ((x[:5],), tf.data.Dataset.from_tensor_slices(x[:5]).batch(2)):
        np.testing.assert_array_equal(ki.influence(model, test, **about).values, expected)
    with pytest.raises(ValueError, match="`test` does not fit .* There are no labels"):
        ki.influence(model, (x[:5],), data, damping=0.1)


def test_a_global_that_a_target_reads_may_change(data, monkeypatch):
    """Of 24 examples it is another target for one, which is none of those that are looked at first."""
    model, (x, y) = truth.softmax_model(4, 3, L2), data
    x[:, 0] = np.where(np.arange(24) == 17, 1.0, 0.0)
    about = {"train": (x, y), "damping": 0.1}
    explainer = ki.Explainer(model, **about)
    # Before the others: it is the target that was asked last whose trace is kept.
    other = ki.influence(model, (x, y), **about, target=lambda x, y, p: p[:, 2]).values
    before = ki.influence(model, (x, y), **about, target=beyond).values
    explainer.influence((x, y), target=beyond)
    monkeypatch.setitem(globals(), "LIMIT", 0.5)
    expected = np.where((np.arange(24) == 17)[:, None], other, before)
    assert truth.relative_error(before, expected) > 0.1
    for found in (
        ki.influence(model, (x, y), **about, target=beyond),
        explainer.influence((x, y), target=beyond),
    ):
        np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-12)
