"""The linear datamodelling score: do sums of scores predict what models of subsets do?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_influence.agreement import pearson, ranks
from keras_influence.evaluation.study import check_scores
from keras_influence.evaluation.subsets import SubsetOutputs, check_fraction
from keras_influence.validate import check_number


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LDS:
    """A linear datamodelling score (Park et al. 2023, section 2).

    Attributes:
        correlations: (n_test,), over subsets, between predicted and actual outputs.
        mean: their mean, the score. 1 is perfect, 0 is chance.
        interval: bootstrap interval of the mean over test examples.
        confidence: of the interval.
        subsets: how many subsets it is over.
    """

    correlations: np.ndarray
    mean: float
    interval: tuple
    confidence: float
    subsets: int

    def __float__(self):
        return self.mean

    def __repr__(self):
        return (
            f"LDS {self.mean:.3f} ({self.confidence:.0%} interval {self.interval[0]:.3f} to "
            f"{self.interval[1]:.3f}): mean Spearman correlation of predicted and actual outputs, "
            f"{len(self.correlations)} test examples, {self.subsets} subsets"
        )

    def plot(self):
        """A histogram of the test examples' correlations.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import plots

        return plots.lds(self)


def lds(
    scores: Any,
    outputs: SubsetOutputs,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LDS:
    """Linear datamodelling score of an attribution matrix (Park et al. 2023, section 2).

    A subset is predicted to have the output +Σ scores[i, j] over the examples j that it
    lacks, up to a constant, as far as effects add up. For each test example: the Spearman
    correlation, over subsets, of that with the actual output (the mean over seeds).

    Args:
        scores: (n_test, n_train) array or `InfluenceScores` in this package's sign: the change
            of the output if an example is left out. Negate scores that say what an example adds.
        outputs: `SubsetOutputs` of the same test and training examples and the same target.
        confidence: of the bootstrap interval over test examples.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `LDS`.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    if not isinstance(outputs, SubsetOutputs):
        raise TypeError(
            f"`outputs` should be what `subset_outputs` returns. Received: {type(outputs).__name__}"
        )
    check_fraction(confidence, "confidence")
    check_number("resamples", resamples, low=1, integer=True)
    check_number("seed", seed, integer=True)
    actual = outputs.outputs.mean(1)
    check_scores(scores, actual.shape[1], outputs.masks.shape[1])
    known = getattr(scores, "target", outputs.target)
    if known != outputs.target:
        raise ValueError(
            f"`scores` should be about the same target as `outputs`, {outputs.target!r}. "
            f"Received: scores of {known!r}"
        )
    predicted = ~outputs.masks @ np.asarray(scores, np.float64).T
    pairs = zip(ranks(predicted.T), ranks(actual.T))
    correlations = np.nan_to_num([pearson(a, b) for a, b in pairs])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(correlations), (resamples, len(correlations)))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(correlations[drawn].mean(1), tails)
    interval = (float(low), float(high))
    return LDS(correlations, float(correlations.mean()), interval, confidence, len(actual))
