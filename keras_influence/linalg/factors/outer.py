"""Rows of a tall matrix that are outer products in one layer, never written out."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.positions import Positions

# Numbers in the largest array that a product makes: vectors are taken so many at a time.
_NUMBERS = 2**24


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
