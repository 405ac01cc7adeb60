"""Predicted against actual leave-one-out, on all of Fashion-MNIST (Koh & Liang 2017, Figure 2).

Softmax regression with L2 on 60,000 images, at its exact minimum. For one misclassified test
image, the 500 training images with the largest predicted influence are left out one by one
and the model is trained again to its new minimum.

The truth shares no code with the library: loss, gradient and Hessian are written out in NumPy
float64 here. The Hessian at the full minimum is factorised once; with it as a fixed
preconditioner, Newton's method goes to each new minimum in a few full gradients, many removals
sharing each pass over the data. Only the gradient decides where a minimum is, and its norm at
the end of each retraining is printed, relative to what the removal did to it.

    python benchmarks/leave_one_out.py [--n 60000] [--removals 500] [--l2 0.005] [--plot FILE]
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import scipy.linalg
import scipy.optimize
from problems import environment, fashion_mnist

import keras_influence as ki
from keras_influence import CG
from keras_influence.evaluation import LeaveOneOut

CLASSES = 10
TOL = 1e-5


class SoftmaxRegression:
    """Mean cross-entropy of logits xW + b plus l2 · ΣW², in NumPy float64; θ is (785, 10)."""

    def __init__(self, x, y, l2):
        self.x = np.hstack([x.reshape(len(x), -1).astype(np.float64), np.ones((len(x), 1))])
        self.y = np.eye(CLASSES)[y]
        self.penalty = np.full((self.x.shape[1], 1), 2.0 * l2)
        self.penalty[-1] = 0

    def losses(self, theta):
        """Loss of each example."""
        z = self.x @ theta
        top = z.max(1)
        return top + np.log(np.exp(z - top[:, None]).sum(1)) - (z * self.y).sum(1)

    def gradients(self, thetas, left_out):
        """∇L at each θ without the example of that number (None: with all), n unchanged.

        Args:
            thetas: (785, k · 10), k parameter matrices side by side.
            left_out: k positions or None.
        """
        n, k = len(self.x), len(left_out)
        z = (self.x @ thetas).reshape(n, k, CLASSES)
        z -= z.max(2, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(2, keepdims=True)
        z -= self.y[:, None]
        for i, j in enumerate(left_out):
            if j is not None:
                z[j, i] = 0
        return self.x.T @ z.reshape(n, -1) / n + self.penalty * thetas

    def hessian(self, theta):
        """∇²L, (7850, 7850), ordered as θ.ravel()."""
        size = self.x.shape[1]
        p = np.exp(self.x @ theta)
        p /= p.sum(1, keepdims=True)
        h = np.empty((size, CLASSES, size, CLASSES))
        for c in range(CLASSES):
            for d in range(c, CLASSES):
                s = p[:, c] * ((c == d) - p[:, d])
                block = (self.x * s[:, None]).T @ self.x / len(self.x)
                h[:, c, :, d] = h[:, d, :, c] = block
        h = h.reshape(size * CLASSES, -1)
        h[np.diag_indices_from(h)] += np.repeat(self.penalty[:, 0], CLASSES)
        return h


def minimum(problem, theta):
    """The minimum by L-BFGS, then Newton's method; and the factorised Hessian there."""

    def value(flat):
        t = flat.reshape(theta.shape)
        penalty = (problem.penalty * t**2).sum() / 2
        return problem.losses(t).mean() + penalty, problem.gradients(t, [None]).ravel()

    options = {"maxiter": 300, "gtol": 1e-5}
    found = scipy.optimize.minimize(
        value, theta.ravel(), jac=True, method="L-BFGS-B", options=options
    )
    theta = found.x.reshape(theta.shape)
    h = problem.hessian(theta)
    # One shift of all biases changes nothing: give that direction some curvature. It is orthogonal
    # to all gradients, so no answer depends on it.
    shift = np.zeros(theta.shape)
    shift[-1] = 1 / np.sqrt(CLASSES)
    last = np.arange(theta.size - CLASSES, theta.size)
    h[np.ix_(last, last)] += np.outer(shift[-1], shift[-1])
    factor = scipy.linalg.cho_factor(h, lower=True, overwrite_a=True, check_finite=False)
    for _ in range(60):
        g = problem.gradients(theta, [None])
        if np.linalg.norm(g) < 1e-13:
            break
        theta = theta - _solve(factor, g, theta.shape)
    return theta, factor, np.linalg.norm(g)


def _solve(factor, gradients, shape):
    """H⁻¹ times each of the gradients that stand side by side."""
    k = gradients.shape[1] // CLASSES
    columns = gradients.reshape(shape[0], k, CLASSES).transpose(0, 2, 1).reshape(-1, k)
    steps = scipy.linalg.cho_solve(factor, columns, check_finite=False)
    return steps.reshape(shape[0], CLASSES, k).transpose(0, 2, 1).reshape(shape[0], -1)


def retrain(problem, theta, factor, left_out):
    """New minima without each example, (785, k · 10), gradient left over, and passes."""
    thetas = np.tile(theta, len(left_out))
    before, passes = None, 0
    while True:
        g = problem.gradients(thetas, left_out)
        passes += 1
        norms = np.linalg.norm(g.reshape(len(theta), -1, CLASSES), axis=(0, 2))
        before = norms if before is None else before
        if (norms < TOL * before).all() or passes == 50:
            return thetas, norms / before, passes
        thetas -= _solve(factor, g, theta.shape)


def keras_model(theta, l2):
    """The same model in Keras, float64, at θ."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    dense = keras.layers.Dense(
        CLASSES, activation="softmax", kernel_regularizer=keras.regularizers.L2(l2)
    )
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), dense])
    model.compile("sgd", "sparse_categorical_crossentropy")
    dense.set_weights([theta[:-1], theta[-1]])
    return model


def main(n, removals, l2, block, plot):
    x, y, name = fashion_mnist(n)
    x_test, y_test, _ = fashion_mnist(10_000, "test")
    print(f"{name}, n = {n}, softmax regression, L2({l2:g}), {removals} removals")
    print(environment(), flush=True)
    start = begin = time.perf_counter()
    problem = SoftmaxRegression(x, y, l2)
    theta, factor, gradient = minimum(problem, np.zeros((785, CLASSES)))
    print(f"minimum: gradient {gradient:.1e}, {time.perf_counter() - start:.0f} s", flush=True)

    unseen = SoftmaxRegression(x_test, y_test, 0.0)
    wrong = np.flatnonzero((unseen.x @ theta).argmax(1) != y_test)
    print(f"test accuracy {1 - len(wrong) / len(y_test):.4f}; test image {wrong[0]}, misclassified")
    one = slice(wrong[0], wrong[0] + 1)
    start = time.perf_counter()
    model = keras_model(theta, l2)
    method = CG(tol=1e-6)
    test = (x_test[one], y_test[one])
    scores = ki.influence(
        model, test, (x, y), damping=0.0, method=method, batch_size=4096, verbose=0
    )
    print(f"predicted in {time.perf_counter() - start:.0f} s: {scores}\n", flush=True)

    start = time.perf_counter()
    chosen = np.argsort(-np.abs(scores.values[0]))[:removals]
    before = unseen.losses(theta)[wrong[0]]
    actual, left, passes = [], [], 0
    for group in np.split(chosen, range(block, removals, block)):
        thetas, norms, count = retrain(problem, theta, factor, list(group))
        z = (unseen.x[wrong[0]] @ thetas).reshape(len(group), CLASSES)
        actual.append(np.log(np.exp(z).sum(1)) - z[:, y_test[wrong[0]]] - before)
        left.append(norms)
        passes += count * len(group)
    print(f"{removals} retrainings: {time.perf_counter() - start:.0f} s, {passes} full gradients")
    left = np.concatenate(left)
    result = LeaveOneOut(
        predicted=scores.values[:, chosen],
        actual=np.concatenate(actual)[None],
        indices=chosen,
        how="Newton's method with the exact Hessian, NumPy float64",
        base_gradient=gradient
        / (np.linalg.norm(_example(problem, theta, chosen), axis=1) / n).min(),
        gradients=left,
    )
    print(result)
    print(f"\nwhole run: {time.perf_counter() - begin:.0f} s")
    if plot:
        result.plot().savefig(plot, dpi=110)


def _example(problem, theta, rows):
    """∇ℓ of some examples."""
    p = np.exp(problem.x[rows] @ theta)
    p /= p.sum(1, keepdims=True)
    return np.einsum("ni,nc->nic", problem.x[rows], p - problem.y[rows]).reshape(len(rows), -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--removals", type=int, default=500)
    parser.add_argument("--l2", type=float, default=0.005)
    parser.add_argument("--block", type=int, default=25, help="removals that share a pass")
    parser.add_argument("--plot", help="write the scatter to this file")
    options = parser.parse_args()
    main(options.n, options.removals, options.l2, options.block, options.plot)
