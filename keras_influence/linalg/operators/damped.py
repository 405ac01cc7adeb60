"""Damping, in the one place where it is defined."""

from collections.abc import Iterator

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.sweeps import add_multiple


class Damped(LinearOperator):
    """A + λI for an operator A and `damping` λ.

    Args:
        operator: the `LinearOperator` A.
        damping: λ, a number >= 0 in the units of A's eigenvalues.
    """

    def __init__(self, operator: LinearOperator, damping: float) -> None:
        self.operator = operator
        self.damping = float(damping)
        self.size = operator.size
        self.dtype = operator.dtype
        self.share = operator.share

    def matmat(self, rows: Array) -> Array:
        product = self.operator.matmat(rows)
        if not self.damping:
            return product
        if np.may_share_memory(product, rows) or not _takes(product, rows):
            return product + self.damping * rows
        add_multiple(product, self.damping, rows)
        return product

    def written_out(self) -> tuple[Array, float]:
        matrix, passes = self.operator.written_out()
        np.einsum("ii->i", matrix)[:] += self.damping
        return matrix, passes

    def samples(self, batch_size: int, seed: int) -> Iterator[LinearOperator]:
        for sample in self.operator.samples(batch_size, seed):
            yield Damped(sample, self.damping)


def _takes(product: Array, rows: Array) -> bool:
    """Whether a multiple of the rows can be added to the product where it is."""
    return product.flags.writeable and np.result_type(product, rows) == product.dtype


def undamped(system: LinearOperator) -> tuple[LinearOperator, float]:
    """The curvature and λ that a system is made of; any other operator is a curvature with λ = 0."""
    if isinstance(system, Damped):
        return system.operator, system.damping
    return system, 0.0
