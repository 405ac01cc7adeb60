"""The linear datamodelling score: do sums of scores predict what models of subsets do?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_influence.engine.selection import select
from keras_influence.evaluation.agreement import pearson, ranks
from keras_influence.evaluation.folder import Folder
from keras_influence.evaluation.retraining import Retraining
from keras_influence.evaluation.study import check_scores
from keras_influence.progress import Progress
from keras_influence.questions import api
from keras_influence.questions.settings import PathSettings as DataSettings
from keras_influence.questions.settings import takes
from keras_influence.storage import (
    fingerprint_of_batches,
    fingerprint_of_function,
    fingerprint_of_model,
    fingerprint_of_weights,
)
from keras_influence.validate import check_number


@dataclasses.dataclass(frozen=True, repr=False)
class SubsetOutputs:
    """What models trained on random subsets of the training data say about test examples.

    Attributes:
        outputs: (subsets, seeds, n_test), the test loss or the target of each model.
        masks: (subsets, n_train), True where a training example was in the subset.
        seeds: of the trainings.
        target: "test loss", or the name of the function.
    """

    outputs: np.ndarray
    masks: np.ndarray
    seeds: tuple
    target: str

    def __repr__(self):
        subsets, seeds, n_test = self.outputs.shape
        return (
            f"SubsetOutputs: {self.target} of {n_test} test examples, by {subsets} subsets of "
            f"{self.masks.sum(1).max()} of {self.masks.shape[1]} training examples x {seeds} seeds"
        )


@dataclasses.dataclass(frozen=True, repr=False)
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


@takes(DataSettings)
def subset_outputs(
    model: Any,
    test: Any,
    train: Any,
    *,
    fit: Any = None,
    target: Any = None,
    fraction: float = 0.5,
    subsets: int = 100,
    seeds: Any = (0, 1, 2),
    seed: int = 0,
    folder: Any = None,
    tol: float = 1e-3,
    max_iter: int = 5000,
    **settings: Any,
) -> SubsetOutputs:
    """Train models on random subsets of the training data, and keep their test outputs.

    The expensive half of `lds`; any number of attribution methods share it. With `folder`,
    each model's outputs are written as soon as it is trained, and a second call trains only
    what is missing: after an interruption, or for more subsets or seeds.

    Args:
        model: a built, compiled `keras.Model` that Keras can rebuild. It is not changed.
        test: examples whose outputs are kept.
        train: the training data; arrays if `fit` is given.
        fit: `fit(model, data)`, which trains a newly initialised model in place, with
            `model.fit(**data, ...)` for example; Keras's random seed is set before. None: L-BFGS
            to the minimum from the weights of `model`, for convex models.
        target: as in `influence`: a function of (x, y, y_pred); default the test loss.
        fraction: size of a subset, in (0, 1).
        subsets: how many subsets.
        seeds: seeds of the trainings on each subset. L-BFGS needs no more than one.
        seed: of the subsets.
        folder: where to keep outputs.
        tol, max_iter: as in `leave_one_out`.
        **settings: `batch_size`, `class_weight`, `variables`, `verbose`, as in `leave_one_out`.

    Returns:
        `SubsetOutputs`.

    Raises:
        CopyError: Keras cannot copy the model.
        ValueError, TypeError: an argument is not usable; the message names it. So is a folder
            that was made with other data, models or settings.
    """
    _check_fraction(fraction)
    check_number("subsets", subsets, low=2, integer=True)
    check_number("seed", seed, integer=True)
    chosen, retraining = DataSettings.of(settings), Retraining(fit, seeds, tol, max_iter)
    trainer = retraining.trainer(model, train, chosen)
    with trainer.precision():
        test = trainer.read(test, target)
        known = _depends_on(model, test, target, chosen.variables, trainer, retraining)
        kept = Folder(folder, {**known, "fraction": fraction, "seed": seed})
        masks = np.stack([_mask(trainer.n, fraction, seed, i) for i in range(subsets)])

        def train_one(i, s):
            trainer.only(np.flatnonzero(masks[i]), s)
            return trainer.outputs(test, target)

        jobs = [(i, s) for i in range(subsets) for s in retraining.seeds]
        title = f"Models of {subsets} subsets x {len(retraining.seeds)} seeds"
        outputs = [
            kept.get(f"subset_{i:05d}_seed_{s}", lambda i=i, s=s: train_one(i, s))
            for i, s in Progress(chosen.verbose).over(jobs, title, len(jobs))
        ]
    outputs = np.reshape(outputs, (subsets, len(retraining.seeds), -1))
    return SubsetOutputs(outputs, masks, retraining.seeds, api.name_of(target))


def _depends_on(model, test, target, variables, trainer, retraining):
    """What the output of a trained model depends on, as a dict that JSON takes."""
    to_minimum = retraining.fit is None
    return {
        # Class weights are in it.
        "train": fingerprint_of_batches(trainer.problem.train),
        "test": fingerprint_of_batches(test),
        "model": fingerprint_of_model(model),
        "variables": _positions(model, variables),
        "weights": fingerprint_of_weights(trainer.given),
        "fit": fingerprint_of_function(retraining.fit),
        "target": [api.name_of(target), fingerprint_of_function(target)],
        "tol, max_iter": [retraining.tol, retraining.max_iter] if to_minimum else None,
    }


def _positions(model, variables):
    """Which of the trainable variables are trained: names change from process to process."""
    chosen = {id(v) for v in select(model, variables)}
    return [i for i, v in enumerate(model.trainable_variables) if id(v) in chosen]


def lds(
    scores: Any,
    outputs: SubsetOutputs,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LDS:
    """Linear datamodelling score of an attribution matrix (Park et al. 2023, section 2).

    A subset is predicted to have the output -Σ scores[i, j] over the examples j that it
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
    _check_fraction(confidence, "confidence")
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


def _mask(n, fraction, seed, index):
    """Which examples are in subset `index`: the same ones however many subsets there are."""
    size = min(max(round(fraction * n), 1), n - 1)
    mask = np.zeros(n, bool)
    mask[np.random.default_rng([seed, index]).permutation(n)[:size]] = True
    return mask


def _check_fraction(value, name="fraction"):
    check_number(name, value, strict=True)
    if value >= 1:
        raise ValueError(f"`{name}` should be between 0 and 1. Received: {name}={value!r}")
