"""Losses of single examples, against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(30, 4)), rng.integers(0, 3, 30)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("batch_size", [7, None])
def test_each_example_has_its_own_loss(batch_size, reduction, data):
    """The regulariser is in none of them, and the reduction does not change them."""
    model = truth.softmax_model(4, 3, L2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction=reduction))
    exact = truth.SoftmaxRegression(*data, 3, L2).losses(truth.get_flat(model))
    found = ki.losses(model, data, batch_size=batch_size)
    assert found.dtype == np.float64
    assert truth.relative_error(found, exact) < 1e-9


def test_weights_of_examples_and_classes_scale_them(data, rng):
    model = truth.softmax_model(4, 3)
    exact = truth.SoftmaxRegression(*data, 3, 0.0).losses(truth.get_flat(model))
    s = rng.uniform(0.5, 2, 30)
    assert truth.relative_error(ki.losses(model, (*data, s)), s * exact) < 1e-9
    weights = {0: 2.0, 1: 0.0}
    scale = np.array([weights.get(label, 1.0) for label in data[1]])
    found = ki.losses(model, data, class_weight=weights)
    assert truth.relative_error(found, scale * exact) < 1e-9


def test_a_dataset_keeps_its_order(data):
    model = truth.softmax_model(4, 3)
    exact = truth.SoftmaxRegression(*data, 3, 0.0).losses(truth.get_flat(model))
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    assert truth.relative_error(ki.losses(model, dataset), exact) < 1e-9


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": (np.ones((3, 5)), np.zeros(3, int))}, ValueError, "`data` does not fit"),
        ({"data": (np.ones((3, 4)), np.zeros(2, int))}, ValueError, "`data`.*as many rows"),
        ({"data": np.ones((3, 4))}, TypeError, "`data` should be a tuple"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"class_weight": [1, 2]}, TypeError, "`class_weight`"),
    ],
)
def test_bad_calls_are_refused(options, error, words, data):
    with pytest.raises(error, match=words):
        ki.losses(truth.softmax_model(4, 3), **({"data": data} | options))
