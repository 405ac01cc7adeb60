"""Models that several questions are tried on, with their truth by NumPy alone: `tests/test_truth.py` compares it with Keras."""

import keras
import numpy as np

import keras_influence as ki
from tests import truth
from tests.pool import pooled

CLASSES = 3


@pooled
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


def _of_logits(model, x):
    """p (n, c) and the Jacobian of the logits (n, c, p) of a `network`, in NumPy."""
    w, b, head, bias = (v.numpy() for v in model.trainable_variables)
    hidden = np.tanh(x @ w + b)
    slope = head.T * (1 - hidden**2)[:, None]
    one = np.ones((len(x), 1))
    inputs, hidden = np.hstack([x, one]), np.hstack([hidden, one])
    first = np.einsum("ni,ncj->ncij", inputs, slope)
    second = np.einsum("nj,cd->ncjd", hidden, np.eye(CLASSES))
    jacobian = [part.reshape(len(x), CLASSES, -1) for part in (first, second)]
    return truth.softmax(hidden @ np.vstack([head, bias])), np.concatenate(jacobian, axis=2)


def gauss_newton(model, x, l2=0.0):
    """(1/n) Σ Jᵀ(diag p - p pᵀ)J + the regulariser's Hessian, J = ∂ logits / ∂θ."""
    p, jacobian = _of_logits(model, x)
    middle = np.eye(CLASSES) * p[:, None] - p[:, :, None] * p[:, None]
    matrix = np.einsum("nci,ncd,ndj->ij", jacobian, middle, jacobian, optimize=True) / len(x)
    head = model.get_layer("head").kernel
    penalty = [
        np.full(int(np.prod(v.shape)), 2 * l2 * (v is head)) for v in model.trainable_variables
    ]
    return matrix + np.diag(np.concatenate(penalty))


def example_gradients(model, x, y):
    """∇ℓ of each example, (n, p), without the regulariser: Jᵀ (p - the label)."""
    p, jacobian = _of_logits(model, x)
    return np.einsum("ncp,nc->np", jacobian, p - np.eye(CLASSES)[y])
