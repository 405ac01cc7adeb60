"""Gradients of one number of all outputs, for networks of many kinds, by finite differences."""

import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels.whole_set import gradient_of_set, value_of_set
from keras_influence.engine.problem import Problem
from tests import truth
from tests.zoo import ZOO

NAMES = (
    *("Conv2D", "side by side: normalisations", "Embedding with mask, LSTM", "frozen backbone"),
    *(
        "several inputs",
        "several outputs",
        "transformer block",
        "custom train_step and compute_loss",
    ),
)


def coupled(x, y, y_pred):
    """A function in which every output of every example has a part in the slope of any other."""
    flat = [tf.reshape(tf.cast(t, "float64"), [-1]) for t in tf.nest.flatten(y_pred)]
    return tf.reduce_logsumexp(tf.concat(flat, 0)) ** 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_slope_over_several_batches(name, rng):
    make, data = ZOO[name]
    model, (x, y) = make(), data(rng)
    # Batches of five and of one.
    problem = Problem(model, (x, y), batch_size=5)
    target = ki.WholeSet(coupled)
    about = problem.objective, problem.train, target
    theta, direction = truth.get_flat(model), rng.normal(size=problem.parameters.size)

    def at(step):
        truth.set_flat(model, theta + step * direction)
        return float(coupled(x, y, model(x, training=False)))

    slope = (8 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 12e-4
    truth.set_flat(model, theta)
    assert np.isclose(value_of_set(*about), at(0), rtol=1e-9)
    assert np.isclose(gradient_of_set(*about) @ direction, slope, rtol=1e-6)


def test_examples_of_different_shapes_are_refused(rng):
    make, _ = ZOO["SimpleRNN"]
    model = make()
    problem = Problem(model, (rng.normal(size=(3, 4, 2)), np.zeros(3, int)))
    mixed = [(tf.zeros([2, n, 2], "float64"), tf.zeros([2], "int64")) for n in (4, 5)]
    with pytest.raises(ValueError, match="Pad them alike"):
        gradient_of_set(problem.objective, mixed, ki.WholeSet(coupled))
