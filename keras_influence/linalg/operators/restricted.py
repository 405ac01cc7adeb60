"""A diagonal block of an operator."""

import numpy as np

from keras_influence.linalg.operators.base import LinearOperator


class Restricted(LinearOperator):
    """P A Pᵀ, the rows and columns of A at some positions.

    Args:
        operator: the `LinearOperator` A, (p, p).
        positions: (r,) integers.
    """

    def __init__(self, operator, positions):
        self._operator, self._positions = operator, positions
        self.size, self.dtype = len(positions), operator.dtype
        self.share, self.damping = operator.share, operator.damping

    def matmat(self, columns):
        full = np.zeros((self._operator.size, columns.shape[1]), columns.dtype)
        full[self._positions] = columns
        return self._operator.matmat(full)[self._positions]
