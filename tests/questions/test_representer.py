"""Representer points: closed forms, and the sum that they are the terms of."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth

N, CLASSES = 40, 3


@pytest.fixture
def data(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)


@pytest.fixture
def fitted(data):
    """Softmax regression at its exact minimum, all of it the last layer."""
    model = truth.softmax_model(4, CLASSES, truth.L2)
    closed = truth.SoftmaxRegression(*data, CLASSES, truth.L2)
    truth.set_flat(model, closed.fit(truth.get_flat(model)))
    return model


def logit(x, y, y_pred):
    """That of class 1, up to what all classes share."""
    return keras.ops.log(y_pred[:, 1]) - keras.ops.mean(keras.ops.log(y_pred), axis=1)


def test_the_parts_add_up_to_the_output(fitted, data):
    """Yeh et al. 2018, theorem 3.1: all examples' parts are the output, but for the bias."""
    scores = ki.representer_influence(fitted, data, data, target=logit)
    kernel, bias = fitted.get_weights()
    outputs = data[0] @ kernel
    expected = outputs[:, 1] - outputs.mean(1)
    assert truth.relative_error(-scores.values.sum(1), expected) < 1e-8
    assert scores.converged.all() and scores.residual.max() < 1e-8
    assert scores.target == "logit"


def test_scores_are_what_the_loss_loses_with_a_part(fitted, data, tmp_path):
    """(∂ℓ_i · ∂ℓ_j)(x_i · x_j) / (2 l2 n), with the slopes p - y of the cross-entropy."""
    test = data[0][:5] + 1, data[1][:5]
    scores = ki.representer_influence(fitted, test, data, batch_size=7)
    slopes = [
        p.predict(x, verbose=0) - np.eye(CLASSES)[y]
        for p, (x, y) in [(fitted, test), (fitted, data)]
    ]
    expected = (slopes[0] @ slopes[1].T) * (test[0] @ data[0].T) / (2 * truth.L2 * N)
    assert truth.relative_error(scores.values, expected) < 1e-6
    assert "parts of      the last kernel, with L2 of 0.03125" in repr(scores)
    scores.save(tmp_path / "scores")
    assert repr(ki.InfluenceScores.load(tmp_path / "scores")) == repr(scores)


def test_a_layer_that_is_not_at_its_minimum_is_not_converged(data):
    model = truth.softmax_model(4, CLASSES, truth.L2)
    assert not ki.representer_influence(model, data, data).converged.any()


def test_a_last_layer_without_l2_is_refused(data):
    with pytest.raises(ValueError, match="should end in a Dense layer with kernel_regularizer"):
        ki.representer_influence(truth.softmax_model(4, CLASSES), data, data)
    with pytest.raises(TypeError, match="`variables` is an unexpected"):
        ki.representer_influence(truth.softmax_model(4, 3, 0.1), data, data, variables=[])
