"""What the tests of `keras_influence.evaluation` share: ridge regression in closed form."""

import numpy as np

from keras_influence.evaluation import SubsetOutputs
from tests import truth
from tests.truth import L2


def ridge_problem(rng, n=40):
    x = rng.normal(size=(n, 4))
    y = x @ rng.normal(size=4) + rng.normal(size=n)
    x_test, y_test = rng.normal(size=(3, 4)), rng.normal(size=3)
    return (x, y[:, None]), (x_test, y_test[:, None])


def ridge_losses(train, test, weights=None):
    """Closed form: test losses at the minimum of the weighted training loss, n unchanged."""
    (x, y), (x_test, y_test) = train, test
    theta = truth.ridge_fit(x, y[:, 0], L2, weights)
    return (y_test[:, 0] - x_test @ theta) ** 2


def ridge_changes(train, test, groups, weights=None):
    """Closed form: change of the test losses when each group has weight 0, n unchanged."""
    weights = np.ones(len(train[0])) if weights is None else weights
    whole = ridge_losses(train, test, weights)
    return np.array([ridge_losses(train, test, zeroed(weights, g)) - whole for g in groups])


def ridge_scores(train, test, weights=None):
    """Closed form: ∇ℓ(test)ᵀ H⁻¹ ∇ℓ(train) / n at the minimum, without damping."""
    (x, y), (x_test, y_test) = train, test
    n = len(x)
    w = np.ones(n) if weights is None else weights
    theta = truth.ridge_fit(x, y[:, 0], L2, w)
    h = 2 * (x.T * w) @ x / n + 2 * L2 * np.eye(x.shape[1])
    g = 2 * (w * (x @ theta - y[:, 0]))[:, None] * x
    g_test = 2 * (x_test @ theta - y_test[:, 0])[:, None] * x_test
    return g_test @ np.linalg.solve(h, g.T) / n


def zeroed(weights, group):
    """A copy of the weights with those of a group at 0."""
    kept = np.array(weights, float)
    kept[group] = 0
    return kept


def least_squares(model, data):
    """A `fit` with a closed form: no randomness, exact."""
    y, weight = data["y"][:, 0], data.get("sample_weight")
    truth.set_flat(model, truth.ridge_fit(data["x"], y, L2, weight))


class Counted:
    """A `fit` that counts, and can fail. What it counts is no part of what it does."""

    def __init__(self, fail_at=0):
        self.calls, self.left = 0, fail_at

    def __call__(self, model, data):
        self.calls += 1
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")
        # Depends on the initial weights, on the data and on the random seed, as training does.
        for variable in model.trainable_variables:
            noise = np.random.normal(size=variable.shape)
            variable.assign_add(noise * data["x"].mean() + np.mean(data.get("sample_weight", 1.0)))


def linear_outputs(rng, n_test=4, n_train=12, subsets=30):
    """Outputs that are exactly linear in who is in the subset, and their coefficients."""
    effects = rng.normal(size=(n_test, n_train))
    masks = np.stack([rng.permutation(n_train) < n_train // 2 for _ in range(subsets)])
    outputs = masks @ effects.T + rng.normal(size=n_test)
    return effects, SubsetOutputs(outputs[:, None], masks, (0,), "test loss")
