"""Counting what a solve costs."""

from collections.abc import Iterator

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.kronecker import AnyBlock
from keras_influence.linalg.factors.rows import Rows
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.layered import Contributions, Layered, layered


class Metered(LinearOperator):
    """An operator that counts its products, in passes over the full data.

    A product with several rows is one pass; with a minibatch estimate it is that
    estimate's `share` of one.

    Attributes:
        passes: passes so far.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self.size, self.dtype, self.share = operator.size, operator.dtype, operator.share
        self.doubtful = operator.doubtful
        self.passes = 0.0
        self.n: int = getattr(operator, "n", 0)

    def matmat(self, rows: Array) -> Array:
        self.passes += self.share
        return self._operator.matmat(rows)

    def written_out(self) -> tuple[Array, float]:
        matrix, passes = self._operator.written_out()
        self.passes += passes
        return matrix, passes

    def vectors_to_write(self) -> float:
        return self._operator.vectors_to_write()

    def kronecker(self, pseudo_gradients: int, seed: int) -> tuple[AnyBlock, ...]:
        """The operator's blocks, in two passes for each pseudo-gradient, if it has layers."""
        blocks = layered(self._operator).kronecker(pseudo_gradients, seed)
        self.passes += 2 * pseudo_gradients
        return blocks

    def layers_are_worth_it(self) -> bool:
        """Whether the operator's are; not where it has none."""
        return isinstance(self._operator, Layered) and self._operator.layers_are_worth_it()

    def coupling(self, blocks: tuple[AnyBlock, ...], chosen: Array, draws: int, seed: int) -> Array:
        """The operator's coupling, which is no pass over all of the data."""
        return layered(self._operator).coupling(blocks, chosen, draws, seed)

    def contributions_worth_it(self) -> Contributions | None:
        """How many of the operator's are; None where it has no layers."""
        if not isinstance(self._operator, Layered):
            return None
        return self._operator.contributions_worth_it()

    def regulariser(self) -> Array:
        """The operator's."""
        return layered(self._operator).regulariser()

    def contributions(self, most: int, nbytes: float) -> tuple[Rows, ...]:
        """The operator's strongest, in as many passes as there are of them for each example."""
        parts = layered(self._operator).contributions(most, nbytes)
        self.passes += len(parts[0]) / self.n if parts else 0.0
        return parts

    def samples(self, batch_size: int, seed: int) -> Iterator[LinearOperator]:
        for sample in self._operator.samples(batch_size, seed):
            yield _MeteredSample(self, sample)


class _MeteredSample(LinearOperator):
    def __init__(self, meter: Metered, sample: LinearOperator) -> None:
        self._meter, self._sample = meter, sample
        self.size, self.dtype, self.share = sample.size, sample.dtype, sample.share

    def matmat(self, rows: Array) -> Array:
        self._meter.passes += self.share
        return self._sample.matmat(rows)
