"""A diagonal block of an operator."""

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator


class Restricted(LinearOperator):
    """P A Pᵀ, the rows and columns of A at some positions.

    Args:
        operator: the `LinearOperator` A, (p, p).
        positions: (r,) integers.
    """

    def __init__(self, operator: LinearOperator, positions: Array) -> None:
        self._operator, self._positions = operator, positions
        self.size, self.dtype = len(positions), operator.dtype
        self.share = operator.share

    def matmat(self, rows: Array) -> Array:
        full = np.zeros((len(rows), self._operator.size), rows.dtype)
        full[:, self._positions] = rows
        return self._operator.matmat(full)[:, self._positions]
