"""Taking out the strongest proponents of a test example, against taking out random ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.evaluation.retraining import Retraining
from keras_influence.evaluation.study import Study
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve:
    """Change of each test loss when its k strongest proponents are left out of training.

    Attributes:
        counts: (m,) values of k.
        top: (n_test, m) actual change, k strongest proponents left out.
        random: (repeats, n_test, m) actual change, k random examples left out.
        predicted: (n_test, m) sums of the proponents' scores.
        target: "test loss", or the name of the function.
    """

    counts: np.ndarray
    top: np.ndarray
    random: np.ndarray
    predicted: np.ndarray
    target: str = "test loss"

    def __repr__(self):
        lines = [
            f"RemovalCurve: mean change of {self.target} of {len(self.top)} test examples",
            "  left out   top proponents   predicted   random",
        ]
        columns = (self.top.mean(0), self.predicted.mean(0), self.random.mean((0, 1)))
        for k, top, predicted, random in zip(self.counts, *columns):
            lines.append(f"  {k:>8}   {top:>+14.4g}   {predicted:>+9.4g}   {random:>+.4g}")
        return "\n".join(lines)

    def plot(self):
        """Mean change over test examples against k, with the range of the random removals.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import plots

        return plots.removal(self)


@takes(Settings)
def removal_curve(
    model: Any,
    test: Any,
    train: Any,
    *,
    counts: Any = (1, 3, 10, 30),
    scores: Any = None,
    target: Any = None,
    fit: Any = None,
    seeds: Any = (0,),
    repeats: int = 3,
    seed: int = 0,
    tol: float = 1e-3,
    max_iter: int = 5000,
    **settings: Unpack[SettingsArguments],
) -> RemovalCurve:
    """Leave out the k strongest proponents of each test example, retrain, and look at its loss.

    One retraining per test example and k, and per k and repeat for the random removals, which
    all test examples share. "Left out" is as in `leave_one_out`.

    Args:
        model, test, train, scores, target, fit, seeds, tol, max_iter: as in `leave_one_out`.
        counts: how many to leave out, each less than the number of training examples.
        repeats: random removals for each k.
        seed: of the random removals.
        **settings: as in `leave_one_out`.

    Returns:
        `RemovalCurve`.

    Raises:
        As `leave_one_out`.
    """
    check_number("repeats", repeats, low=1, integer=True)
    check_number("seed", seed, integer=True)
    retraining = Retraining(fit, seeds, tol, max_iter)
    study = Study(model, test, train, target, retraining, Settings.of(settings))
    counts = _checked_counts(counts, study.n)
    scores = study.scores(scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    rng = np.random.default_rng(seed)
    rankings = (*order, *(rng.permutation(study.n) for _ in range(repeats)))
    changes, _ = study.changes([ranking[:k] for ranking in rankings for k in counts])
    changes = changes.reshape(len(rankings), len(counts), study.n_test)
    each = np.arange(study.n_test)
    top, random = changes[each, :, each], changes[study.n_test :].transpose(0, 2, 1)
    totals = np.cumsum(np.take_along_axis(scores, order, 1), axis=1)
    return RemovalCurve(counts, top, random, totals[:, counts - 1], study.target)


def _checked_counts(counts, n):
    found = np.atleast_1d(np.asarray(counts))
    if found.dtype.kind not in "iu" or found.ndim != 1 or not found.size:
        raise TypeError(f"`counts` should be a list of integers. Received: counts={counts!r}")
    if found.min() < 1 or found.max() >= n:
        raise ValueError(
            f"`counts` should be from 1 to {n - 1}, less than the training examples. "
            f"Received: counts={counts!r}"
        )
    return found
