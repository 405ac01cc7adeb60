"""Which training examples are strongest, found without a look at all scores at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# Scores that are ranked at once: a few copies of them are made.
_PART = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Training examples in order, for each test example.

    Attributes:
        indices: (n_test, k) positions in the training data.
        values: (n_test, k) their scores.
    """

    indices: np.ndarray
    values: np.ndarray


class Strongest:
    """The k strongest of scores that come in by parts, in the order of the training data.

    Of equal scores the one that comes first in the training data is the stronger.

    Args:
        k: how many; all, if there are fewer.
        proponents: whether the largest are asked for, else the smallest.
    """

    def __init__(self, k: int, proponents: bool) -> None:
        self._k, self._proponents = k, proponents
        self._seen = 0
        self._kept: Ranking | None = None

    def add(self, part: np.ndarray) -> None:
        """The scores of the training examples that follow, (n_test, b)."""
        count = part.shape[1]
        indices = np.broadcast_to(np.arange(self._seen, self._seen + count), part.shape)
        if self._kept is not None:
            part = np.concatenate([self._kept.values, part], axis=1)
            indices = np.concatenate([self._kept.indices, indices], axis=1)
        first = _first(-part if self._proponents else part, self._k)
        self._kept = Ranking(
            np.take_along_axis(indices, first, 1), np.take_along_axis(part, first, 1)
        )
        self._seen += count

    @property
    def ranking(self) -> Ranking:
        """Of what has come in."""
        if self._kept is None:
            raise ValueError("nothing has been added")
        return self._kept


def ranked(values: Any, k: int, proponents: bool) -> Ranking:
    """The k strongest of (n_test, n_train) scores, an array or a `zarr.Array`."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"`k` should be an integer >= 1. Received: k={k!r}")
    n_test, n_train = values.shape
    tall, wide = getattr(values, "chunks", (max(1, _PART // n_train), n_train))
    rankings = []
    for row in range(0, n_test, tall):
        strongest = Strongest(int(k), proponents)
        for column in range(0, n_train, wide):
            strongest.add(values[row : row + tall, column : column + wide])
        rankings.append(strongest.ranking)
    return joined(rankings)


def joined(rankings: list[Ranking]) -> Ranking:
    """Those of test examples one after another, as one."""
    return Ranking(
        np.concatenate([ranking.indices for ranking in rankings]),
        np.concatenate([ranking.values for ranking in rankings]),
    )


def _first(keys: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k smallest in each row, smallest first; of equal ones the first, NaN last."""
    keys = np.where(np.isnan(keys), np.inf, keys)
    k = min(k, keys.shape[1])
    bound = np.partition(keys, k - 1, axis=1)[:, k - 1 : k]
    chosen, equal = keys < bound, keys == bound
    missing = k - chosen.sum(1)
    for row in np.flatnonzero(equal.sum(1) > missing):
        equal[row, np.flatnonzero(equal[row])[missing[row] :]] = False
    found = np.nonzero(chosen | equal)[1].reshape(len(keys), k)
    order = np.argsort(np.take_along_axis(keys, found, 1), axis=1, kind="stable")
    return np.take_along_axis(found, order, 1)
