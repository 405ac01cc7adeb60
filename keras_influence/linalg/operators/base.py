"""The interface that solvers see."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse.linalg

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.network import Network
from keras_influence.linalg.sweeps import add_transposed

# Rows of a dense matrix that share a pass over the data: bounds the memory of a pass.
_BLOCK = 512


class LinearOperator:
    """A symmetric p × p matrix known by its products.

    Subclasses set `size` (p) and `dtype`, and implement `matmat`. Vectors are rows.

    Attributes:
        share: what a product costs, as a fraction of one pass over the full data.
        doubtful: whether it may well have negative eigenvalues, so that little should be made
            for it before that is seen.
        network: what the layers know of it; None where it has none.
    """

    size: int
    dtype: np.dtype[Any]
    share: float = 1.0
    doubtful: bool = False
    network: Network | None = None

    def matmat(self, rows: Array) -> Array:
        """The matrix times each row of a (k, p) array, as a (k, p) array that is the caller's."""
        raise NotImplementedError

    def matvec(self, vector: Array) -> Array:
        """The matrix times a (p,) array."""
        return self.matmat(np.asarray(vector)[None])[0]

    def samples(self, batch_size: int, seed: int) -> Iterator["LinearOperator"]:
        """An endless iterator of unbiased, cheap estimates of this operator.

        The default is the operator itself, without noise.

        Args:
            batch_size: number of examples that one estimate sees.
            seed: integer; the same seed gives the same estimates.
        """
        while True:
            yield self

    def to_dense(self) -> Array:
        """The (p, p) float64 matrix by p products, symmetrised; an array of its own."""
        matrix = np.empty((self.size, self.size))
        for start in range(0, self.size, _BLOCK):
            rows = np.zeros((min(_BLOCK, self.size - start), self.size), self.dtype)
            np.fill_diagonal(rows[:, start:], 1)
            matrix[start : start + _BLOCK] = self.matmat(rows)
        matrix /= 2
        add_transposed(matrix)
        return matrix

    def written_out(self) -> tuple[Array, float]:
        """The same in whichever way costs least, and what that took, in passes."""
        return self.to_dense(), self.share * -(-self.size // _BLOCK)

    def vectors_to_write(self) -> float:
        """How many vectors are multiplied, many at a time, in the time that writing it out takes."""
        return float(self.size)

    def spend(self, passes: float) -> None:
        """Have passes over the full data counted that were taken besides products, if anybody counts."""

    def as_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """This operator as a `scipy.sparse.linalg.LinearOperator`, for SciPy's solvers.

        SciPy's vectors are columns, (p, k): an operator's are turned here and nowhere else.
        """

        def product(columns: npt.ArrayLike) -> Array:
            return self.matmat(np.asarray(columns).reshape(self.size, -1).T).T

        return scipy.sparse.linalg.LinearOperator(
            shape=(self.size, self.size),
            dtype=self.dtype,
            matvec=product,
            rmatvec=product,
            matmat=product,
            rmatmat=product,
        )
