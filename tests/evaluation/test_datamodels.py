"""Linear datamodelling scores by hand."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import evaluation
from keras_influence.evaluation import SubsetOutputs
from tests.retraining import least_squares, linear_outputs


def test_lds_of_linear_outputs_is_one(rng):
    effects, outputs = linear_outputs(rng)
    # Being in the subset adds `effects`; being left out takes them away.
    score = evaluation.lds(-effects, outputs)
    assert score.mean == pytest.approx(1)
    assert score.interval == pytest.approx((1, 1))
    assert float(score) == score.mean
    assert evaluation.lds(effects, outputs).mean == pytest.approx(-1)


def test_lds_is_the_mean_spearman_by_hand():
    masks = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
    # Two seeds each, with means 2, 4, 0.5, 3: ranks 2 4 1 3.
    by_seed = np.array([[[1.0], [3.0]], [[4.0], [4.0]], [[0.0], [1.0]], [[3.0], [3.0]]])
    outputs = SubsetOutputs(by_seed, masks, (0, 1), "test loss")
    # Left out are {1, 2}, {0, 2}, {0, 1} and {2}, with sums of scores 5, 6, 1, 5: ranks
    # 2.5 4 1 2.5. Centred products 0.0 + 2.25 + 2.25 + 0.0 over norms √5 and √4.5.
    score = evaluation.lds(np.array([[1.0, 0.0, 5.0]]), outputs)
    assert score.mean == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_lds_interval_covers_its_mean_and_widens(rng):
    effects, outputs = linear_outputs(rng, n_test=30)
    noisy = -effects + 2 * rng.normal(size=effects.shape)
    narrow, wide = (evaluation.lds(noisy, outputs, confidence=c) for c in (0.5, 0.99))
    assert wide.interval[0] < narrow.interval[0] < narrow.mean < narrow.interval[1]
    assert narrow.interval[1] < wide.interval[1]
    standard_error = narrow.correlations.std() / np.sqrt(30)
    assert wide.interval[1] - wide.interval[0] == pytest.approx(2 * 2.58 * standard_error, rel=0.2)


def test_lds_refuses_what_does_not_fit(rng):
    effects, outputs = linear_outputs(rng)
    with pytest.raises(TypeError, match="`outputs`"):
        evaluation.lds(effects, effects)
    with pytest.raises(ValueError, match="`scores`"):
        evaluation.lds(effects.T, outputs)
    with pytest.raises(ValueError, match="`confidence`"):
        evaluation.lds(effects, outputs, confidence=1.0)
    with pytest.raises(ValueError, match="`resamples`"):
        evaluation.lds(effects, outputs, resamples=0)


def test_lds_refuses_scores_of_another_target(ridge):
    model, train, test = ridge
    outputs = evaluation.subset_outputs(
        model, test, train, fit=least_squares, subsets=2, seeds=(0,), verbose=0
    )

    def output(x, y, y_pred):
        return y_pred[:, 0]

    scores = ki.influence(model, test, train, target=output)
    with pytest.raises(ValueError, match="the same target"):
        evaluation.lds(scores, outputs)
