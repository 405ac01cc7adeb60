"""Outputs of models that were trained on random subsets of the training data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.checksums import (
    fingerprint_of_batches,
    fingerprint_of_function,
    fingerprint_of_model,
    fingerprint_of_weights,
)
from keras_influence.engine.selection import select
from keras_influence.evaluation.folder import Folder
from keras_influence.evaluation.retraining import Retraining
from keras_influence.progress import Progress
from keras_influence.questions.evidence import name_of
from keras_influence.questions.settings import PathArguments, PathSettings, takes
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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


@takes(PathSettings)
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
    **settings: Unpack[PathArguments],
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
        ValueError, TypeError: an argument is not usable; the message names it. So is a model
            that Keras cannot copy, or a folder made with other data, models or settings.
    """
    check_fraction(fraction)
    check_number("subsets", subsets, low=2, integer=True)
    check_number("seed", seed, integer=True)
    chosen, retraining = PathSettings.of(settings), Retraining(fit, seeds, tol, max_iter)
    trainer = retraining.trainer(model, train, chosen)
    with trainer.precision():
        test = trainer.read(test, target)
        known = _depends_on(model, test, target, chosen.variables, trainer, retraining)
        kept = Folder(folder, {**known, "fraction": fraction, "seed": seed})
        masks = np.stack([_mask(trainer.n, fraction, seed, i) for i in range(subsets)])

        def outputs_of(i, s):
            trainer.only(np.flatnonzero(masks[i]), s)
            return trainer.outputs(test, target)

        jobs = list(itertools.product(range(subsets), retraining.seeds))
        title = f"Models of {subsets} subsets x {len(retraining.seeds)} seeds"
        outputs = [
            kept.get(f"subset_{i:05d}_seed_{s}", functools.partial(outputs_of, i, s))
            for i, s in Progress(chosen.verbose).over(jobs, title, len(jobs))
        ]
    outputs = np.reshape(outputs, (subsets, len(retraining.seeds), -1))
    return SubsetOutputs(outputs, masks, retraining.seeds, name_of(target))


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
        "target": [name_of(target), fingerprint_of_function(target)],
        "tol, max_iter": [retraining.tol, retraining.max_iter] if to_minimum else None,
    }


def _positions(model, variables):
    """Which of the trainable variables are trained: names change from process to process."""
    chosen = {id(v) for v in select(model, variables)}
    return [i for i, v in enumerate(model.trainable_variables) if id(v) in chosen]


def _mask(n, fraction, seed, index):
    """Which examples are in subset `index`: the same ones however many subsets there are."""
    size = min(max(round(fraction * n), 1), n - 1)
    mask = np.zeros(n, bool)
    mask[np.random.default_rng([seed, index]).permutation(n)[:size]] = True
    return mask


def check_fraction(value, name="fraction"):
    """Raise unless `value` is a number between 0 and 1, both excluded."""
    check_number(name, value, strict=True)
    if value >= 1:
        raise ValueError(f"`{name}` should be between 0 and 1. Received: {name}={value!r}")
