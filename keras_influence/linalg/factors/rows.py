"""Rows of a tall matrix, known piece by piece: as products, written out, or where they are not zero."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.positions import Positions

# Numbers in the largest array that a product makes: vectors are taken so many at a time.
_NUMBERS = 2**24
# Multiplications of a product of dense matrices in the time of one of sparse ones.
_SLOWER = 50


@dataclasses.dataclass(frozen=True)
class Outer:
    """The part in one layer of rows that are products there: a δᵀ of each.

    Attributes:
        positions: (K, O) in θ.
        inputs: a of each row, (m, K).
        deltas: δ of each row, (m, O).
    """

    positions: Positions
    inputs: Array
    deltas: Array

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.inputs.nbytes + self.deltas.nbytes

    def gram(self) -> Array:
        """Inner products of the rows, (m, m)."""
        product = self.inputs @ self.inputs.T
        step = max(1, _NUMBERS // len(product))
        for start in range(0, len(product), step):
            some = slice(start, start + step)
            product[some] *= self.deltas[some] @ self.deltas.T
        return product

    def products(self, v: Array) -> Array:
        """Inner products with each of (k, K·O) vectors, (k, m)."""
        found = np.empty((len(v), len(self.inputs)), v.dtype)
        for some in self._slices(len(v)):
            part = v[some].reshape(-1, *self.positions.shape).transpose(1, 0, 2)
            turned = self.inputs @ part.reshape(len(part), -1)
            turned = turned.reshape(len(turned), -1, self.deltas.shape[1])
            found[some] = np.einsum("mko,mo->km", turned, self.deltas)
        return found

    def combined(self, coefficients: Array) -> Array:
        """The rows' combinations with (k, m) coefficients, (k, K·O)."""
        height, width = self.positions.shape
        found = np.empty((len(coefficients), height, width), coefficients.dtype)
        for some in self._slices(len(coefficients)):
            scaled = coefficients[some].T[:, :, None] * self.deltas[:, None]
            turned = self.inputs.T @ scaled.reshape(len(scaled), -1)
            found[some] = turned.reshape(height, -1, width).transpose(1, 0, 2)
        return found.reshape(len(coefficients), -1)

    def toarray(self) -> Array:
        """The rows written out, (m, K·O)."""
        return (self.inputs[:, :, None] * self.deltas[:, None]).reshape(len(self), -1)

    def parted(self, count: int) -> list["Outer"]:
        """So many parts, one below the other, of as many rows each."""
        pairs = zip(np.split(self.inputs, count), np.split(self.deltas, count))
        return [Outer(self.positions, *pair) for pair in pairs]

    def beside(self, first: "Outer") -> "Outer":
        """The same, where the inputs are those of `first`, holding no others."""
        return dataclasses.replace(self, inputs=first.inputs)

    def above(self, others: Sequence["Outer"]) -> "Outer":
        """These rows, and below them others."""
        inputs = np.concatenate([part.inputs for part in (self, *others)])
        deltas = np.concatenate([part.deltas for part in (self, *others)])
        return Outer(self.positions, inputs, deltas)

    def times(self, number: float) -> "Outer":
        """The rows times a number."""
        return dataclasses.replace(self, deltas=self.deltas * self.deltas.dtype.type(number))

    def stretched(self, scale: Array) -> "Outer":
        """The rows with each position of θ times a number, one for all outputs of an input."""
        by_input = self.positions.taken(scale).mean(1).astype(self.inputs.dtype)
        return dataclasses.replace(self, inputs=self.inputs * by_input)

    def astype(self, dtype: npt.DTypeLike) -> "Outer":
        """The same in another precision."""
        arrays = (a.astype(dtype, copy=False) for a in (self.inputs, self.deltas))
        return Outer(self.positions, *arrays)

    def _slices(self, count: int) -> Iterator[slice]:
        step = max(1, _NUMBERS // (len(self.inputs) * self.deltas.shape[1]))
        return (slice(start, start + step) for start in range(0, count, step))


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
        shape = len(self.indptr) - 1, self.positions.size
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


Rows: TypeAlias = Outer | Formed | Sparse


def stacked(pieces: Sequence[Any]) -> Rows:
    """Rows of one kind, some below the others."""
    first = pieces[0]
    return first if len(pieces) == 1 else first.above(pieces[1:])
