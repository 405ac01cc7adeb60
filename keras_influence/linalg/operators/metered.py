"""Counting what a solve costs."""

from collections.abc import Iterator

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator


class Metered(LinearOperator):
    """An operator that counts its products, in passes over the full data.

    A product with several rows is one pass; with a minibatch estimate it is that
    estimate's `share` of one.

    Attributes:
        operator: as given.
        passes: passes so far.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.size, self.dtype, self.share = operator.size, operator.dtype, operator.share
        self.doubtful, self.network = operator.doubtful, operator.network
        self.passes = 0.0

    def matmat(self, rows: Array) -> Array:
        self.passes += self.share
        return self.operator.matmat(rows)

    def written_out(self) -> tuple[Array, float]:
        matrix, passes = self.operator.written_out()
        self.passes += passes
        return matrix, passes

    def vectors_to_write(self) -> float:
        return self.operator.vectors_to_write()

    def spend(self, passes: float) -> None:
        self.passes += passes

    def samples(self, batch_size: int, seed: int) -> Iterator[LinearOperator]:
        for sample in self.operator.samples(batch_size, seed):
            yield _MeteredSample(self, sample)


class _MeteredSample(LinearOperator):
    def __init__(self, meter: Metered, sample: LinearOperator) -> None:
        self._meter, self._sample = meter, sample
        self.size, self.dtype, self.share = sample.size, sample.dtype, sample.share

    def matmat(self, rows: Array) -> Array:
        self._meter.passes += self.share
        return self._sample.matmat(rows)
