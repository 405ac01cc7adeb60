"""Predicted against actual leave-one-out, on all of Fashion-MNIST (Koh & Liang 2017, Figure 2).

Softmax regression with L2 on 60,000 images, at its exact minimum. For one misclassified test
image, the 500 training images with the largest predicted influence are left out one by one
and the model is trained again to its new minimum.

The truth shares no code with the library: loss, gradient and Hessian are written out in NumPy
float64 here. The Hessian near the full minimum is factorised once; with it as a fixed
preconditioner, Newton's method goes to each new minimum in a few full gradients, many removals
sharing each pass over the data. Only the gradient decides where a minimum is, and its norm at
the end of each retraining is printed, relative to what the removal did to it. The prediction is
that of the same model in Keras, in float32 as it comes.

    python benchmarks/leave_one_out.py [--n 60000] [--removals 500] [--l2 0.005] [--plot FILE]

With --folder, the minimum, the factor, the prediction and each block of retrainings are kept, so
that a second call resumes; its times are then those of what was left to do.
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
from keras_influence.evaluation.folder import Folder

CLASSES = 10
TOL = 1e-3


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
        """∇²L, (7850, 7850), ordered as θ.ravel(); products in float32, as a preconditioner."""
        size = self.x.shape[1]
        x = self.x.astype(np.float32)
        p = np.exp(self.x @ theta)
        p = (p / p.sum(1, keepdims=True)).astype(np.float32)
        h = np.empty((size, CLASSES, size, CLASSES))
        for c in range(CLASSES):
            for d in range(c, CLASSES):
                s = p[:, c] * ((c == d) - p[:, d])
                h[:, c, :, d] = (x * s[:, None]).T @ x / len(x)
                h[:, d, :, c] = h[:, c, :, d]
        h = h.reshape(size * CLASSES, -1)
        h[np.diag_indices_from(h)] += np.repeat(self.penalty[:, 0], CLASSES)
        return h


def minimum(problem, kept):
    """The minimum by L-BFGS, then Newton's method with a Hessian kept fixed; and its factor."""
    shape = problem.x.shape[1], CLASSES

    def value(flat):
        t = flat.reshape(shape)
        penalty = (problem.penalty * t**2).sum() / 2
        return problem.losses(t).mean() + penalty, problem.gradients(t, [None]).ravel()

    def near():
        options = {"maxiter": 40, "gtol": 1e-5}
        start = np.zeros(shape).ravel()
        return scipy.optimize.minimize(
            value, start, jac=True, method="L-BFGS-B", options=options
        ).x.reshape(shape)

    def factorised():
        h = problem.hessian(theta)
        # One shift of all biases changes nothing: give that direction some curvature. It is
        # orthogonal to all gradients, so no answer depends on it.
        h[-CLASSES:, -CLASSES:] += 1 / CLASSES
        return scipy.linalg.cho_factor(h, lower=True, overwrite_a=True, check_finite=False)[0]

    def newton():
        t = theta
        for _ in range(60):
            g = problem.gradients(t, [None])
            if np.linalg.norm(g) < 1e-10:
                break
            t = t - _solve(factor, g, shape)
        return t

    theta = kept.get("near", near)
    factor = kept.get("factor", factorised), True
    return kept.get("theta", newton), factor


def _solve(factor, gradients, shape):
    """H⁻¹ times each of the gradients that stand side by side."""
    k = gradients.shape[1] // CLASSES
    columns = gradients.reshape(shape[0], k, CLASSES).transpose(0, 2, 1).reshape(-1, k)
    steps = scipy.linalg.cho_solve(factor, columns, check_finite=False)
    return steps.reshape(shape[0], CLASSES, k).transpose(0, 2, 1).reshape(shape[0], -1)


def retrain(problem, theta, factor, left_out):
    """New minima without each example, (785, k · 10), gradient left over, and passes."""
    # At the old minimum the new gradient is minus the part of the example that is left out.
    parts = example_gradients(problem, theta, left_out) / len(problem.x)
    before = np.linalg.norm(parts, axis=(1, 2))
    g = -parts.transpose(1, 0, 2).reshape(len(theta), -1)
    thetas = np.tile(theta, len(left_out))
    for passes in range(1, 50):  # noqa: B007
        thetas -= _solve(factor, g, theta.shape)
        g = problem.gradients(thetas, left_out)
        norms = np.linalg.norm(g.reshape(len(theta), -1, CLASSES), axis=(0, 2))
        if (norms < TOL * before).all():
            break
    return thetas, norms / before, passes


def example_gradients(problem, theta, rows):
    """∇ℓ of some examples, (k, 785, 10)."""
    p = np.exp(problem.x[rows] @ theta)
    p /= p.sum(1, keepdims=True)
    return np.einsum("ni,nc->nic", problem.x[rows], p - problem.y[rows])


def keras_model(theta, l2):
    """The same model in Keras, at θ."""
    dense = keras.layers.Dense(
        CLASSES, activation="softmax", kernel_regularizer=keras.regularizers.L2(l2)
    )
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), dense])
    model.compile("sgd", "sparse_categorical_crossentropy")
    dense.set_weights([theta[:-1], theta[-1]])
    return model


def main(n, removals, l2, block, plot, folder):
    x, y, name = fashion_mnist(n)
    x_test, y_test, _ = fashion_mnist(10_000, "test")
    print(f"{name}, n = {n}, softmax regression, L2({l2:g}), {removals} removals")
    print(environment(), flush=True)
    kept = Folder(folder, {"n": n, "l2": l2, "block": block, "removals": removals})
    start = begin = time.perf_counter()
    problem = SoftmaxRegression(x, y, l2)
    theta, factor = minimum(problem, kept)
    gradient = np.linalg.norm(problem.gradients(theta, [None]))
    print(f"minimum: gradient {gradient:.1e}, {time.perf_counter() - start:.0f} s", flush=True)

    unseen = SoftmaxRegression(x_test, y_test, 0.0)
    image = np.flatnonzero((unseen.x @ theta).argmax(1) != y_test)[0]
    accuracy = ((unseen.x @ theta).argmax(1) == y_test).mean()
    print(f"test accuracy {accuracy:.4f}; test image {image}, the first misclassified one")
    start = time.perf_counter()
    test = x_test[image : image + 1], y_test[image : image + 1]

    def predict():
        options = {"method": CG(tol=1e-4), "damping": 0.0, "batch_size": 4096, "verbose": 0}
        scores = ki.influence(keras_model(theta, l2), test, (x, y), **options)
        print(scores)
        return scores.values

    values = kept.get("predicted", predict).astype(np.float64)
    print(f"predicted in {time.perf_counter() - start:.0f} s", flush=True)

    start = time.perf_counter()
    chosen = np.argsort(-np.abs(values[0]))[:removals]
    before = unseen.losses(theta)[image]

    def change(group):
        thetas, norms, count = retrain(problem, theta, factor, list(group))
        z = (unseen.x[image] @ thetas).reshape(len(group), CLASSES)
        after = np.log(np.exp(z).sum(1)) - z[:, y_test[image]]
        return np.stack([after - before, norms, np.full(len(group), count)])

    groups = np.split(chosen, range(block, removals, block))
    parts = [kept.get(f"block_{i:03d}", lambda g=g: change(g)) for i, g in enumerate(groups)]
    actual, left, passes = np.concatenate(parts, axis=1)
    seconds = time.perf_counter() - start
    print(f"{removals} retrainings: {seconds:.0f} s, {passes.mean():.1f} full gradients each")
    smallest = np.linalg.norm(example_gradients(problem, theta, chosen), axis=(1, 2)).min() / n
    result = LeaveOneOut(
        predicted=values[:, chosen],
        actual=actual[None],
        indices=chosen,
        how="Newton's method with a fixed Hessian, NumPy float64",
        base_gradient=gradient / smallest,
        gradients=left,
    )
    print(result)
    print(f"\nwhole run: {time.perf_counter() - begin:.0f} s")
    if plot:
        result.plot().savefig(plot, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--removals", type=int, default=500)
    parser.add_argument("--l2", type=float, default=0.005)
    parser.add_argument("--block", type=int, default=25, help="removals that share a pass")
    parser.add_argument("--plot", help="write the scatter to this file")
    parser.add_argument("--folder", help="keep results there, and resume")
    o = parser.parse_args()
    main(o.n, o.removals, o.l2, o.block, o.plot, o.folder)
