"""Second moments of rows, which are kept as the rows while these are few."""

import operator

import numpy as np
import tensorflow as tf

from keras_influence.linalg.eigenvectors import LARGEST, eigenvectors, eigenvectors_of_rows

# Rows with less than this part of a matrix's numbers are kept.
_PART = 1 / 3


class Moment:
    """Σ r rᵀ of rows r of some width: the rows, or the matrix, or neither where that is too large.

    What wide layers of few examples see spans few directions, and is far fewer numbers as it is.

    Args:
        width: numbers in a row.
    """

    # So that an array that it is multiplied by leaves that to it.
    __array_ufunc__ = None

    def __init__(self, width):
        self._width, self._rows, self._matrix = width, [], None

    def add(self, rows):
        """Count rows in, an array or tensor (m, width)."""
        if self._matrix is None and self._are_few(rows):
            self._rows.append(np.asarray(rows))
            return
        kept, self._rows = self._rows, []
        if self._width > LARGEST:
            self._matrix = np.zeros((0, 0), np.float32)
            return
        for some in (*([np.concatenate(kept)] if kept else ()), rows):
            squares = tf.matmul(some, some, transpose_a=True).numpy()
            if self._matrix is None:
                self._matrix = squares
            else:
                self._matrix += squares

    @property
    def arrays(self):
        """What it is made of."""
        return self._rows if self._matrix is None else [self._matrix]

    def settled(self):
        """Orthonormal eigenvectors as columns, (width, r); empty where there is no basis.

        All rows are in their span. To be asked for once, for the moment is let go of.
        """
        rows, matrix = self._rows, self._matrix
        self._rows = self._matrix = None
        if matrix is not None:
            return eigenvectors(matrix)
        return eigenvectors_of_rows(np.concatenate(rows)) if rows else np.zeros((0, 0), np.float32)

    def __rmul__(self, share):
        """Another one, in which all rows count so much."""
        scaled = Moment(self._width)
        scaled._rows = [rows * np.sqrt(share).astype(rows.dtype) for rows in self._rows]
        scaled._matrix = None if self._matrix is None else share * self._matrix
        return scaled

    def __add__(self, other):
        return operator.iadd(1.0 * self, other)

    def __iadd__(self, other):
        if other._matrix is not None and self._matrix is not None:
            self._matrix += other._matrix
        elif other._matrix is not None:
            waiting, self._rows = self._rows, []
            self._matrix = other._matrix.copy()
            for rows in waiting:
                self.add(rows)
        for rows in other._rows:
            self.add(rows)
        return self

    def _are_few(self, rows):
        """Whether rows may be kept beside those that are."""
        numbers = sum(kept.size for kept in self._rows) + np.prod(rows.shape)
        return numbers <= _PART * min(self._width, LARGEST) ** 2
