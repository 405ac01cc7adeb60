"""A matrix that is written out."""

import numpy as np
import numpy.typing as npt

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator


class Dense(LinearOperator):
    """A symmetric matrix given as a (p, p) array."""

    def __init__(self, matrix: npt.ArrayLike) -> None:
        self._matrix = np.asarray(matrix)
        if self._matrix.ndim != 2 or self._matrix.shape[0] != self._matrix.shape[1]:
            raise ValueError(f"`matrix` should be square. Received: shape {self._matrix.shape}")
        self.size = self._matrix.shape[0]
        self.dtype = self._matrix.dtype

    def matmat(self, rows: Array) -> Array:
        return rows @ self._matrix.T
