"""Models that several questions are tried on, with their truth by NumPy or TensorFlow alone."""

import keras
import numpy as np
import tensorflow as tf

import keras_influence as ki
from tests import truth

CLASSES = 3


def network(width=5, l2=0.0, features=4, cls=keras.Model, seed=0):
    """tanh features and a softmax head, 43 weights with the defaults."""
    keras.utils.set_random_seed(seed)
    regulariser = keras.regularizers.L2(l2) if l2 else None
    inputs = keras.Input((features,))
    hidden = keras.layers.Dense(width, "tanh", name="hidden")(inputs)
    head = keras.layers.Dense(CLASSES, "softmax", name="head", kernel_regularizer=regulariser)
    model = cls(inputs, head(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def fitted_ridge(rng, n=30, features=3, cls=ki.InfluenceModel):
    """A ridge regression at its minimum, with its training data."""
    x = rng.normal(size=(n, features))
    y = x @ rng.normal(size=features) + rng.normal(size=n)
    model = truth.ridge_model(features, truth.L2, cls)
    truth.set_flat(model, truth.ridge_fit(x, y, truth.L2))
    return model, x, y


def gauss_newton(model, x, l2=0.0):
    """(1/n) Σ Jᵀ(diag p - p pᵀ)J + the regulariser's Hessian, J = ∂ log p / ∂θ.

    Logits are log p up to a shift, which the middle matrix does not see.
    """
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        p = model(x, training=False)
        logits = tf.math.log(p)
    parts = tape.jacobian(logits, variables, experimental_use_pfor=False)
    jacobian = np.concatenate([t.numpy().reshape(len(x), CLASSES, -1) for t in parts], axis=2)
    p = p.numpy()
    middle = np.eye(CLASSES) * p[:, None] - p[:, :, None] * p[:, None]
    matrix = np.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian, optimize=True) / len(x)
    head = model.get_layer("head").kernel
    penalty = [
        np.full(int(np.prod(v.shape)), 2 * l2 * (v is head)) for v in model.trainable_variables
    ]
    return matrix + np.diag(np.concatenate(penalty))


def example_gradients(model, x, y):
    """∇ℓ of each example, (n, p), without the regulariser."""
    nothing = np.zeros(1)
    return np.array(
        [
            truth.gradient(model, x[[i]], y[[i]])
            - truth.gradient(model, x[[i]], y[[i]], sample_weight=nothing)
            for i in range(len(x))
        ]
    )
