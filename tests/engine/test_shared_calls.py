"""Layers that are called once for all examples: each example's own δ, where it is seen, and where not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import CG, EKFAC, inverse_hvp
from keras_influence.engine.layers.sites import recording
from tests import truth

layers = keras.layers
# What becomes of the embedding e of the positions t, and ∂z/∂e.
SEEN = {
    "added": (lambda x, e, t: x + e(t), lambda x: 1),
    "added with an axis": (lambda x, e, t: e(t)[None] + x, lambda x: 1),
    "called with an axis": (lambda x, e, t: e(t[None]) + x, lambda x: 1),
    "broadcast": (lambda x, e, t: x * tf.broadcast_to(e(t), tf.shape(x)), lambda x: x),
    "copied": (lambda x, e, t: x * tf.tile(e(t[None]), [tf.shape(x)[0], 1, 1]), lambda x: x),
}
UNSEEN = {
    "multiplied": lambda x, e, t: x * e(t),
    "cut": lambda x, e, t: x + e(t)[:1],
    "backwards": lambda x, e, t: x + e(t)[::-1],
    "turned": lambda x, e, t: x[:, :3] + tf.transpose(e(t[:3])),
    "repeated along another axis": lambda x, e, t: x + e(t[:1]),
    "used twice": lambda x, e, t: (lambda z: x * z + z)(e(t)),
    "in a branch": lambda x, e, t: tf.cond(tf.reduce_sum(x) < 1e9, lambda: x + e(t), lambda: x),
}


def _site(use, x, c=None):
    """The embedding's `Site`, traced for any number of examples, and the gradient of Σ c z at it."""
    embedding = layers.Embedding(4, 3)
    embedding.build(None)
    found = {}

    @tf.function(input_signature=[tf.TensorSpec([None, 4, 3], x.dtype)])
    def traced(x):
        with tf.GradientTape() as tape, recording([embedding]) as sites:
            z = use(x, embedding, tf.range(4))
        (found["site"],) = sites
        if c is None:
            return tf.zeros([])
        return tape.gradient(z, found["site"].outputs, output_gradients=c), found["site"].inputs

    return found, traced(tf.constant(x))


@pytest.mark.parametrize("name", SEEN)
def test_each_example_has_its_own(name, float64, rng):
    use, slope = SEEN[name]
    x, c = rng.normal(size=(2, 5, 4, 3))
    _, (delta, inputs) = _site(use, x, c)
    assert delta.numpy() == pytest.approx(c * slope(x))
    assert (inputs.numpy() == np.tile(np.arange(4), (5, 1))).all()


@pytest.mark.slow_cases("in a branch")
@pytest.mark.parametrize("name", UNSEEN)
def test_elsewhere_the_layer_has_been_called_once(name, float64, rng):
    found, _ = _site(UNSEEN[name], rng.normal(size=(5, 4, 3)))
    assert None not in found["site"].outputs.shape


@keras.saving.register_keras_serializable("test_shared_calls")
class Branch(layers.Layer):
    """Adds an embedding of the positions in a branch."""

    def build(self, shape):
        self.embedding = layers.Embedding(*shape[1:])
        self.embedding.build(None)

    def call(self, x):
        return UNSEEN["in a branch"](x, self.embedding, tf.range(4))


@pytest.mark.slow_cases(
    "CG(tol=1e-10, max_iter=1000, preconditioner=EKFAC(pseudo_gradients=1, seed=0))"
)
@pytest.mark.parametrize("method", [CG(tol=1e-10), CG(tol=1e-10, preconditioner=EKFAC())], ids=str)
def test_a_call_in_a_branch_is_nobodys(method, float64, rng):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(Branch()(inputs))))
    model.compile("sgd", "mse")
    x, v = rng.normal(size=(9, 4, 3)), rng.normal(size=(25,))
    settings = {"damping": 0.1, "curvature": "gauss_newton", "verbose": 0}
    found = inverse_hvp(model, v, (x, rng.normal(size=(9, 1))), method=method, **settings)
    embedded, kernel, _ = (w.numpy() for w in model.trainable_variables)
    w = kernel.ravel()
    rows = np.hstack([np.tile(w, (9, 1)), (x + embedded).reshape(9, -1), np.ones((9, 1))])
    exact = np.linalg.solve(2 * rows.T @ rows / 9 + 0.1 * np.eye(25), v)
    assert truth.relative_error(np.asarray(found).ravel(), exact) < 1e-8
