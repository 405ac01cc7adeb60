"""Removal curves against closed-form ridge regression."""

import numpy as np

from keras_influence import evaluation
from tests import truth
from tests.retraining import ridge_changes, ridge_scores


def test_removal_curve_is_closed_form_ridge(ridge):
    model, train, test = ridge
    curve = evaluation.removal_curve(
        model, test, train, counts=(1, 4), repeats=2, seed=5, damping=0.0, tol=1e-8, verbose=0
    )
    scores = ridge_scores(train, test)
    order = np.argsort(-scores, axis=1)
    for column, k in enumerate((1, 4)):
        expected = np.diag(ridge_changes(train, test, [row[:k] for row in order]))
        assert truth.relative_error(curve.top[:, column], expected) < 1e-5
        sums = np.take_along_axis(scores, order[:, :k], 1).sum(1)
        assert truth.relative_error(curve.predicted[:, column], sums) < 1e-5
    rng = np.random.default_rng(5)
    for r in range(2):
        order = rng.permutation(40)
        expected = ridge_changes(train, test, [order[:1], order[:4]]).T
        assert truth.relative_error(curve.random[r], expected) < 1e-5
    assert "top proponents" in repr(curve)
