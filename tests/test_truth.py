"""Closed forms that tests rely on, against Keras's own loss and TensorFlow's derivatives."""

import keras
import numpy as np
import tensorflow as tf

from tests import truth
from tests.questions import models


def _data(rng):
    return rng.normal(size=(7, 4)), rng.integers(0, 3, 7)


def test_gradients_of_the_network(rng):
    model, (x, y) = models.network(l2=truth.L2), _data(rng)
    nothing = np.zeros(1)
    expected = [
        truth.gradient(model, x[[i]], y[[i]])
        - truth.gradient(model, x[[i]], y[[i]], sample_weight=nothing)
        for i in range(7)
    ]
    assert truth.relative_error(models.example_gradients(model, x, y), np.array(expected)) < 1e-12


def test_the_gauss_newton_matrix_of_the_network(rng):
    """Logits are log p up to a shift, which the middle matrix does not see."""
    model, (x, _) = models.network(l2=truth.L2), _data(rng)
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        p = model(x, training=False)
        logits = tf.math.log(p)
    parts = tape.jacobian(logits, variables, experimental_use_pfor=False)
    jacobian = np.concatenate([t.numpy().reshape(7, 3, -1) for t in parts], axis=2)
    p = p.numpy()
    middle = np.eye(3) * p[:, None] - p[:, :, None] * p[:, None]
    expected = np.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian) / 7
    expected[25:40, 25:40] += 2 * truth.L2 * np.eye(15)  # The head's kernel.
    assert truth.relative_error(models.gauss_newton(model, x, truth.L2), expected) < 1e-12


def test_a_compiled_gradient_is_that_of_the_loss(rng):
    """Also of an embedding, some rows of which nobody asks for, and by weights."""
    x, y, w = rng.integers(0, 5, (6, 3)), rng.normal(size=(6, 1)), rng.uniform(size=6)
    layers = [keras.layers.Embedding(7, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    slope = truth.gradient_of_weights(model, x, y)
    for found, options in ((slope(), {}), (slope(w), {"sample_weight": w})):
        expected = truth.gradient(model, x, y, **options)
        assert truth.relative_error(found, expected) < 1e-12
    theta, e = truth.get_flat(model), 1e-6 * rng.normal(size=21)
    hessian = truth.finite_difference_hessian(model, x, y)
    truth.set_flat(model, theta + e)
    change = truth.gradient(model, x, y)
    truth.set_flat(model, theta - e)
    assert truth.relative_error(hessian @ (2 * e), change - truth.gradient(model, x, y)) < 1e-6
