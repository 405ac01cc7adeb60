"""A matrix Σ g gᵀ written out, of rows g that come a few examples at a time.

Where rows are products a δᵀ, an example's have the input a in common, and their δ are summed over first:

    Σ_c (a ⊗ δ_c)(b ⊗ ε_c)ᵀ = a bᵀ ⊗ Σ_c δ_c ε_cᵀ

So a dense layer's example takes as long as one row, however many it has; and a block of two of its
outputs is symmetric, which takes half of that.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.rows import Rows
from keras_influence.linalg.sweeps import add_transposed

# Numbers in the largest array that a product makes.
_NUMBERS = 2**24


@dataclasses.dataclass(frozen=True)
class _Products:
    """Rows a δᵀ of some examples, as many of each.

    Attributes:
        positions: (K, O) in θ.
        inputs: (b, K).
        deltas: (C, b, O).
    """

    positions: Array
    inputs: Array
    deltas: Array

    @property
    def by_output(self) -> Array:
        """The positions of each output's weights, (O, K)."""
        return self.positions.T

    @classmethod
    def of(cls, pieces: Sequence[Any]) -> "_Products":
        """The `Outer` of several columns."""
        first = pieces[0]
        return cls(
            first.positions.array, first.inputs, np.stack([piece.deltas for piece in pieces])
        )

    def combined(self, weights: Array) -> Iterator[Array]:
        """Σ_c w_c a δ_cᵀ of each example for (C, b) weights, output after output: (b, some of O · K)."""
        turned = np.einsum("cb,cbo->bo", weights, self.deltas)
        step = max(1, _NUMBERS // self.inputs.size)
        for start in range(0, turned.shape[1], step):
            some = turned[:, start : start + step, None] * self.inputs[:, None]
            yield some.reshape(len(some), -1)


@dataclasses.dataclass(frozen=True)
class _Dense:
    """Rows that are written out.

    Attributes:
        positions: (q,) in θ.
        rows: (C, b, q).
    """

    positions: Array
    rows: Array

    @property
    def by_output(self) -> Array:
        """The positions, as those of one output, (1, q)."""
        return self.positions[None]

    @classmethod
    def of(cls, pieces: Sequence[Rows]) -> "_Dense":
        """The rows of several columns."""
        rows = np.stack([piece.toarray() for piece in pieces])
        return cls(pieces[0].positions.flat.array, rows)

    def combined(self, weights: Array) -> Iterator[Array]:
        """Σ_c w_c g_c of each example for (C, b) weights: (b, q)."""
        yield np.einsum("cb,cbq->bq", weights, self.rows)


class _Strip:
    """Some rows of the matrix, from the diagonal on.

    Args:
        positions: of the rows in θ.
        rest: those of the columns, which begin with these.
    """

    def __init__(self, positions: Array, rest: Array) -> None:
        self.positions, self.rest = positions, rest
        self.sums = np.zeros((len(positions), len(rest)))


class Assembly:
    """The matrix Σ g gᵀ of rows whose parts hold each position once at most."""

    def __init__(self) -> None:
        self._strips: list[list[_Strip]] = []
        self._shared: bool | None = None

    def add(self, columns: Sequence[Sequence[Rows]]) -> bool:
        """The rows of some examples; whether they are in parts as those before them were, else nothing is added.

        Args:
            columns: of each the examples' rows, one after another, as parts. All are of the same
                examples, with the same parts. None where these examples have no rows.
        """
        if not any(columns):
            return True
        # A single row of each has nothing in common with others, and is one product written out.
        self._shared = len(columns) > 1 if self._shared is None else self._shared
        products, written = [], []
        for pieces in zip(*columns):
            if self._shared and isinstance(pieces[0], Outer):
                products.append(_Products.of(pieces))
            else:
                written.append(_Dense.of(pieces))
        order = _order_of([*products, *written])
        if not self._strips:
            self._strips = _laid_out([*products, *written])
        elif not np.array_equal(order, self._strips[0][0].rest):
            return False
        for i, (part, strips) in enumerate(zip(products, self._strips)):
            _add_products(strips, part, [*products[i + 1 :], *written])
        for i, (rows, (strip,)) in enumerate(zip(written, self._strips[len(products) :])):
            _add_written(strip.sums, rows, written[i + 1 :])
        return True

    def written_out(self, size: int) -> Array:
        """The (p, p) matrix, in float64; to be asked for once, for what it is made of is let go of."""
        matrix = np.zeros((size, size))
        strips = [strip for some in self._strips for strip in some][::-1]
        self._strips = []
        while strips:
            strip = strips.pop()
            # What has its mirror image in the strip itself is added to that.
            strip.sums[:, : len(strip.sums)] /= 2
            matrix[np.ix_(strip.positions, strip.rest)] = strip.sums
        add_transposed(matrix)
        return matrix


def _order_of(parts: Sequence[_Products | _Dense]) -> Array:
    """The positions of all parts in the order of the strips."""
    return np.concatenate([part.by_output.ravel() for part in parts])


def _laid_out(parts: Sequence[_Products | _Dense]) -> list[list[_Strip]]:
    """Empty strips: one for each output of what is products, and one for each other part."""
    order, start, strips = _order_of(parts), 0, []
    for part in parts:
        mine = []
        for some in part.by_output:
            mine.append(_Strip(some, order[start:]))
            start += len(some)
        strips.append(mine)
    return strips


def _add_products(
    strips: Sequence[_Strip], part: _Products, others: Sequence[_Products | _Dense]
) -> None:
    inputs, height = part.inputs, part.inputs.shape[1]
    room = np.empty_like(inputs)
    for o, strip in enumerate(strips):
        weights = part.deltas[:, :, o]
        both = np.einsum("cb,cbo->ob", weights, part.deltas[:, :, o:])
        for j, weight in enumerate(both):
            strip.sums[:, j * height : (j + 1) * height] += _weighed(inputs, weight, room)
        start = len(both) * height
        for other in others:
            for found in other.combined(weights):
                stop = start + found.shape[1]
                strip.sums[:, start:stop] += inputs.T @ found
                start = stop


def _add_written(sums: Array, part: _Dense, others: Sequence[_Dense]) -> None:
    rows = part.rows.reshape(-1, part.rows.shape[2])
    start = rows.shape[1]
    sums[:, :start] += rows.T @ rows
    for other in others:
        found = other.rows.reshape(len(rows), -1)
        stop = start + found.shape[1]
        sums[:, start:stop] += rows.T @ found
        start = stop


def _weighed(inputs: Array, weights: Array, room: Array) -> Array:
    """inputsᵀ diag(weights) inputs, by products of matrices with themselves, which BLAS does in half the time.

    Args:
        room: an array as the inputs.
    """
    scaled = np.multiply(inputs, np.sqrt(np.abs(weights))[:, None], out=room)
    negative = weights < 0
    if negative.all() or not negative.any():
        product: Array = scaled.T @ scaled
        return np.negative(product, out=product) if negative.all() else product
    more, less = scaled[~negative], scaled[negative]
    return more.T @ more - less.T @ less
