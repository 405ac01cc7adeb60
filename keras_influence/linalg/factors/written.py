"""Rows of a tall matrix that are written out in some positions: as an array, or where they are not zero."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.positions import Positions

# Numbers in the largest array that a product of sparse rows makes: columns are taken so many at a time.
_NUMBERS = 2**24
# Multiplications of a product of dense matrices in the time of one of sparse ones.
_SLOWER = 50


class _Written:
    """The part in some positions of rows that are written out, `rows` (m, q)."""

    rows: Any

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        product = self.rows @ self.rows.T
        return product.toarray() if scipy.sparse.issparse(product) else product

    def products(self, v: Array) -> Array:
        """Inner products with each of (k, q) vectors, (k, m)."""
        return (self.rows @ v.T).T

    def combined(self, coefficients: Array) -> Array:
        """The rows' combinations with (k, m) coefficients, (k, q)."""
        return (self.rows.T @ coefficients.T).T

    def beside(self, first: Any) -> Any:
        """Itself: there is nothing that it has in common with `first`."""
        return self


@dataclasses.dataclass(frozen=True)
class Formed(_Written):
    """Rows that are written out as an array.

    Attributes:
        positions: (q,) in θ.
        rows: (m, q).
    """

    positions: Positions
    rows: Array

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.rows.nbytes

    def toarray(self) -> Array:
        """The rows, (m, q)."""
        return self.rows

    def parted(self, count: int) -> list["Formed"]:
        """So many parts, one below the other, of as many rows each."""
        return [Formed(self.positions, rows) for rows in np.split(self.rows, count)]

    def above(self, others: Sequence["Formed"]) -> "Formed":
        """These rows, and below them others."""
        return Formed(self.positions, np.concatenate([part.rows for part in (self, *others)]))

    def times(self, number: float) -> "Formed":
        """The rows times a number."""
        return Formed(self.positions, self.rows * self.rows.dtype.type(number))

    def stretched(self, scale: Array) -> "Formed":
        """The rows with each position of θ times a number."""
        scale = self.positions.taken(scale).astype(self.rows.dtype)
        return Formed(self.positions, self.rows * scale)

    def astype(self, dtype: npt.DTypeLike) -> "Formed":
        """The same in another precision."""
        return Formed(self.positions, self.rows.astype(dtype, copy=False))


@dataclasses.dataclass(frozen=True)
class Sparse(_Written):
    """Rows that are written out where they are not zero, as SciPy's `csr_matrix` holds them.

    Attributes:
        positions: (q,) in θ.
        data, indices, indptr: of the (m, q) matrix.
    """

    positions: Positions
    data: Array
    indices: Array
    indptr: Array

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.data.nbytes + self.indices.nbytes

    @functools.cached_property
    def rows(self) -> Any:
        """The matrix."""
        shape = len(self), self.positions.size
        return scipy.sparse.csr_matrix((self.data, self.indices, self.indptr), shape)

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        # Each column by itself, as a product of sparse matrices takes it, or all as a dense one.
        used, columns, counts = np.unique(self.indices, return_inverse=True, return_counts=True)
        if _SLOWER * (counts.astype(float) ** 2).sum() < len(self) ** 2 * len(used):
            return super().gram()
        shape = len(self), len(used)
        rows = scipy.sparse.csr_matrix((self.data, columns, self.indptr), shape).tocsc()
        product, step = np.zeros((len(self),) * 2, self.data.dtype), max(1, _NUMBERS // len(self))
        for start in range(0, len(used), step):
            part = rows[:, start : start + step].toarray()
            product += part @ part.T
        return product

    def toarray(self) -> Array:
        """The rows written out, (m, q)."""
        found: Array = self.rows.toarray()
        return found

    def parted(self, count: int) -> list["Sparse"]:
        """So many parts, one below the other, of as many rows each."""
        each = len(self) // count
        return [self._of(self.rows[i * each : (i + 1) * each]) for i in range(count)]

    def above(self, others: Sequence["Sparse"]) -> "Sparse":
        """These rows, and below them others."""
        return self._of(scipy.sparse.vstack([part.rows for part in (self, *others)], "csr"))

    def _of(self, matrix: Any) -> "Sparse":
        return Sparse(self.positions, matrix.data, matrix.indices, matrix.indptr)

    def times(self, number: float) -> "Sparse":
        """The rows times a number."""
        return dataclasses.replace(self, data=self.data * self.data.dtype.type(number))

    def stretched(self, scale: Array) -> "Sparse":
        """The rows with each position of θ times a number."""
        scale = self.positions.taken(scale)[self.indices].astype(self.data.dtype)
        return dataclasses.replace(self, data=self.data * scale)

    def astype(self, dtype: npt.DTypeLike) -> "Sparse":
        """The same in another precision."""
        return dataclasses.replace(self, data=self.data.astype(dtype, copy=False))
