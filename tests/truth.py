"""Independent truth: closed forms in NumPy, and finite differences, without the library."""

import keras
import numpy as np
import tensorflow as tf

from tests.pool import pooled

# Keras keeps a regulariser's factor in float32: take one that is exact there.
L2 = 1 / 32


def relative_error(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class SoftmaxRegression:
    """Closed forms of mean weighted cross-entropy + l2 · ΣW² for logits xW + b, θ = (W, b)."""

    def __init__(self, x, y, classes, l2, weights=None):
        self.x = np.hstack([x, np.ones((len(x), 1))])
        self.y = np.eye(classes)[y]
        self.l2 = l2
        self.w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
        self.penalty = np.ones((self.x.shape[1], classes))
        self.penalty[-1] = 0

    def losses(self, theta):
        logits = self.x @ theta.reshape(self.penalty.shape)
        top = logits.max(1, keepdims=True)
        return (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0] - (
            logits * self.y
        ).sum(1)

    def example_gradients(self, theta):
        p = softmax(self.x @ theta.reshape(self.penalty.shape))
        return np.einsum("ni,nc->nic", self.x, p - self.y).reshape(len(self.x), -1)

    def gradient(self, theta):
        p = softmax(self.x @ theta.reshape(self.penalty.shape))
        data = self.x.T @ (self.w[:, None] * (p - self.y)) / len(self.x)
        return data.ravel() + 2 * self.l2 * self.penalty.ravel() * theta

    def hessian(self, theta):
        p = softmax(self.x @ theta.reshape(self.penalty.shape))
        s = (np.eye(p.shape[1]) * p[:, None] - p[:, :, None] * p[:, None]) * self.w[:, None, None]
        h = np.einsum("ni,nj,ncd->icjd", self.x, self.x, s, optimize=True) / len(self.x)
        size = self.penalty.size
        return h.reshape(size, size) + np.diag(2 * self.l2 * self.penalty.ravel())

    def fit(self, theta, steps=50, tol=1e-13, chosen=slice(None)):
        """Newton's method to the exact minimum over the entries `chosen` of θ."""
        theta = np.array(theta)
        for _ in range(steps):
            h, g = self.hessian(theta)[chosen][:, chosen], self.gradient(theta)[chosen]
            # The same shift of all biases changes nothing: H is singular.
            step = np.linalg.pinv(h, hermitian=True) @ g
            theta[chosen] -= step
            if np.abs(step).max() < tol:
                break
        return theta


def set_flat(model, theta):
    parts = np.split(theta, np.cumsum([int(np.prod(v.shape)) for v in model.trainable_variables]))
    for v, part in zip(model.trainable_variables, parts):
        v.assign(part.reshape(v.shape))


def get_flat(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def gradient(model, x, y, **weight):
    """Gradient of Keras's full-batch loss."""
    return _flat(_gradients(model, x, y, **weight))


def gradients_of_each(model, x, value_of):
    """∇ of `value_of(outputs, i)` of each example by itself, by a plain tape, (n, p)."""
    rows = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            value = value_of(model(x[i : i + 1]), i)
        rows.append(_flat(tape.gradient(value, [v.value for v in model.trainable_variables])))
    return np.array(rows)


def gradient_of_weights(model, x, y):
    """`gradient` as a function of sample weights alone, compiled: for truths that ask for it often."""
    gradient(model, x, y)  # Keras builds its losses at their first call.
    compiled = tf.function(lambda w: _gradients(model, x, y, sample_weight=w), autograph=False)
    return lambda weight=None: _flat(compiled(None if weight is None else tf.constant(weight)))


def _gradients(model, x, y, **weight):
    with tf.GradientTape() as tape:
        y_pred = model(x, training=False)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred, training=False, **weight)
    variables = [v.value for v in model.trainable_variables]
    return tape.gradient(loss, variables, unconnected_gradients="zero")


def _flat(gradients):
    return np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in gradients])


def finite_difference_hvp(model, x, y, v, step=1e-4):
    """H v from central differences of the gradient, fourth order."""
    return _differences(model, lambda: gradient(model, x, y), [v], step)[0]


def finite_difference_hessian(model, x, y, step=1e-4, weight=None):
    """H as `finite_difference_hvp` has its columns, by a gradient that is compiled."""
    directions, slope = np.eye(len(get_flat(model))), gradient_of_weights(model, x, y)
    return _differences(model, lambda: slope(weight), directions, step)


def _differences(model, slope, directions, step):
    theta = get_flat(model)

    def at(v, t):
        set_flat(model, theta + t * step * v)
        return slope()

    try:
        return np.array(
            [
                (8 * (at(v, 1) - at(v, -1)) - (at(v, 2) - at(v, -2))) / (12 * step)
                for v in directions
            ]
        )
    finally:
        set_flat(model, theta)


@pooled
def softmax_model(features, classes, l2=0.0, cls=keras.Model):
    """The Keras model that `SoftmaxRegression` describes."""
    inputs = keras.Input((features,))
    regulariser = keras.regularizers.L2(l2) if l2 else None
    dense = keras.layers.Dense(classes, activation="softmax", kernel_regularizer=regulariser)
    model = cls(inputs, dense(inputs))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pooled
def ridge_model(features, l2=0.0, cls=keras.Model):
    """Linear regression without bias, squared loss, L2."""
    inputs = keras.Input((features,))
    dense = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(l2))
    model = cls(inputs, dense(inputs))
    model.compile("sgd", "mse")
    return model


def ridge_fit(x, y, l2, weights=None):
    """argmin Σ wᵢ (yᵢ - xᵢθ)² / n + l2 ‖θ‖²."""
    w = np.ones(len(x)) if weights is None else weights
    h = 2 * (x.T * w) @ x / len(x) + 2 * l2 * np.eye(x.shape[1])
    return np.linalg.solve(h, 2 * x.T @ (w * y) / len(x))
