"""Some of the weights as θ."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.questions.models import network


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, 3, 24)


SELECTIONS = {
    "a layer": lambda m: m.get_layer("head"),
    "a list of a layer": lambda m: [m.get_layer("head")],
    "a list of variables": lambda m: m.get_layer("head").trainable_variables,
    "variables in another order": lambda m: m.get_layer("head").trainable_variables[::-1],
    "a predicate": lambda m: lambda v: "head" in v.path,
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_variables_restrict_theta(name, data):
    """For the last layer alone the model is a softmax regression on the features."""
    model = network(cls=ki.InfluenceModel)
    chosen = SELECTIONS[name](model)
    features = keras.Model(model.inputs, model.get_layer("hidden").output)(data[0]).numpy()
    closed = truth.SoftmaxRegression(features, data[1], 3, 0.0)
    theta = truth.get_flat(model)[25:]
    hessian = closed.hessian(theta)
    found = model.hvp(np.eye(18), data, variables=chosen)
    assert truth.relative_error(found, hessian) < 1e-9
    g = closed.example_gradients(theta)
    expected = g @ np.linalg.solve(hessian + 0.1 * np.eye(18), g.T) / 24
    scores = model.influence(data, data, damping=0.1, variables=chosen)
    assert truth.relative_error(scores.values, expected) < 1e-8
    assert scores.parameters == ("head/kernel", "head/bias")
    assert "2 weights: head/kernel, head/bias" in repr(scores)
