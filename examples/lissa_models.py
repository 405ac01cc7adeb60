"""The two models of lissa_hyperparameters.py, their exact answers, and actual retraining."""

import itertools

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped
from keras_influence.linalg.operators.base import LinearOperator

N, TESTS, L2 = 500, 4, 1 / 64


# ---- the two models, each with an exact answer


class System:
    """A trained model, the gradients v of a few test losses, and (C + λI)⁻¹ v exactly."""

    def __init__(self, name, model, train, test, curvature):
        self.name, self.model = name, model
        self.problem = Problem(model, train)
        self.rows = self.problem.example_gradients(self.problem.read(test, "test"))
        self._curvature = self.problem.curvature(curvature)
        self.dense = self._curvature.to_dense()
        self.largest = np.linalg.eigvalsh(self.dense)[-1]

    def operator(self, damping):
        return Damped(self._curvature, damping)

    def exact(self, damping):
        return np.linalg.solve(self.dense + damping * np.eye(len(self.dense)), self.rows.T).T

    def minibatch_eigenvalue(self, size, count):
        """The largest eigenvalue of `count` minibatch curvatures, in units of the full one."""
        samples = self._curvature.samples(size, seed=1)
        tops = [np.linalg.eigvalsh(next(samples).to_dense())[-1] for _ in range(count)]
        return max(tops) / self.largest


class Independent(LinearOperator):
    """Minibatches drawn anew at each step, where the library goes through the data in epochs."""

    def __init__(self, operator):
        self.size, self.dtype = operator.size, operator.dtype
        self._operator, self.matmat = operator, operator.matmat

    def samples(self, batch_size, seed):
        for step in itertools.count():
            yield next(self._operator.samples(batch_size, seed + step))


def digits():
    """Images averaged to 4 x 4, so that dense solutions and refits are cheap."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[: N + TESTS]
    images = data.images[order].reshape(-1, 4, 2, 4, 2).mean((2, 4)) / 16
    x, y = images[..., None], data.target[order]
    return (x[:N], y[:N]), (x[N:], y[N:])


def softmax_regression(train, test):
    """At its minimum, found by Newton's method; convex, so that retraining has one outcome."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, "softmax", kernel_regularizer=keras.regularizers.L2(L2)),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    system = None
    for _ in range(8):
        system = System("softmax", model, train, test, "hessian")
        theta = np.concatenate([w.ravel() for w in model.get_weights()])
        # The same shift of all biases changes nothing: H is singular.
        step = np.linalg.pinv(system.dense, hermitian=True) @ _gradient(theta, *train)
        kernel, bias = np.split(theta - step, [160])
        model.set_weights([kernel.reshape(16, 10), bias])
    return System("softmax", model, train, test, "hessian")


def conv_net(train, test):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*train, epochs=20, verbose=0)
    return System("conv", model, train, test, "gauss_newton")


MODELS = {"softmax": softmax_regression, "conv": conv_net}


# ---- actual retraining of softmax regression, in closed forms


def _losses(theta, x, y):
    logits = _design(x) @ theta.reshape(17, 10)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]


def _gradient(theta, x, y, without=None):
    """Of Σᵢ wᵢ ℓᵢ / n + L2 ‖kernel‖², wᵢ = 0 for the example left out."""
    design, w = _design(x), np.ones(len(y))
    if without is not None:
        w[without] = 0
    p = np.exp(design @ theta.reshape(17, 10))
    p = p / p.sum(1, keepdims=True) - np.eye(10)[y]
    penalty = np.r_[2 * L2 * theta[:160], np.zeros(10)]
    return (design.T @ (w[:, None] * p)).ravel() / len(y) + penalty


def _design(x):
    return np.hstack([x.reshape(len(x), -1), np.ones((len(x), 1))])


def leave_one_out(system, train, test, removals):
    """Actual changes of the test losses, (tests, removals), by refits to the minimum."""
    theta = np.concatenate([w.ravel() for w in system.model.get_weights()])
    inverse = np.linalg.pinv(system.dense, hermitian=True)
    changes = []
    for j in removals:
        refit = theta
        for _ in range(30):  # Newton's method with the Hessian of all data: linear, and enough.
            refit = refit - inverse @ _gradient(refit, *train, without=j)
        changes.append(_losses(refit, *test) - _losses(theta, *test))
    return np.array(changes).T


class Truth:
    """Pearson correlation of scores with actual changes."""

    def __init__(self, system, train, test, removals):
        self.rows = removals
        self.system = system
        self.changes = leave_one_out(system, train, test, removals).ravel()

    def __call__(self, x):
        scores = self.system.problem.scores(x)[:, self.rows].ravel()
        return np.corrcoef(scores, self.changes)[0, 1]
