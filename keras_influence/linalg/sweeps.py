"""Sums over long rows, some columns at a time, so that what is made on the way stays in the cache.

A temporary array as long as the rows themselves costs more than the arithmetic: its pages are new
each time. Rows may be in float32; all sums are taken in float64.
"""

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_influence.linalg.arrays import Array, side_by_side

# Numbers of all rows together that are taken at once, and columns at least.
_NUMBERS, _LEAST = 2**16, 2**10
# Rows and columns of a square that is turned at once.
_SQUARE = 256
# Pieces that are worth another thread.
_MANY = 4


def pieces(shape: tuple[int, ...]) -> Iterator[slice]:
    """Consecutive columns of (k, p) rows."""
    count, size = shape
    width = max(_LEAST, _NUMBERS // max(1, count))
    for start in range(0, max(1, size), width):
        yield slice(start, start + width)


def overlaps(a: Array, b: Array) -> Array:
    """a bᵀ for (k, p) and (m, p) rows, (k, m)."""
    return _summed(lambda some: _wide(a[:, some]) @ _wide(b[:, some]).T, a.shape)


def row_norms(rows: Array) -> Array:
    """Euclidean norm of each row."""
    return np.sqrt(_summed(lambda some: _squares(rows[:, some]), rows.shape))


def conjugated(z: Array, change: Array | None, p: Array | None) -> Array:
    """Take `change` @ p off z, in place, if there is any; the overlaps of what is left, (k, k)."""

    def left(some: slice) -> Array:
        part = z[:, some]
        if change is not None and p is not None:
            part -= change @ p[:, some]
        wide = _wide(part)
        return wide @ wide.T

    return _summed(left, z.shape)


def turned(turn: Array, z: Array, lengths: Array) -> Array:
    """turn @ (z / lengths), with a length for each row, in the place of the first rows of z."""
    count = len(turn)

    def turn_some(some: slice) -> None:
        z[:count, some] = turn @ (z[:, some] / lengths[:, None])

    _each(turn_some, z.shape)
    return z[:count]


def add_multiple(total: Array, factor: float, rows: Array) -> None:
    """total + factor * rows, in place."""

    def add(some: slice) -> None:
        total[:, some] += factor * rows[:, some]

    _each(add, rows.shape)


def add_transposed(matrix: Array) -> None:
    """matrix + matrixᵀ, in place."""
    size = len(matrix)
    for start in range(0, size, _SQUARE):
        rows = slice(start, start + _SQUARE)
        for other in range(start, size, _SQUARE):
            columns = slice(other, other + _SQUARE)
            total = matrix[rows, columns] + matrix[columns, rows].T
            matrix[rows, columns] = total
            matrix[columns, rows] = total.T


def reflect(matrix: Array) -> None:
    """What is below the diagonal put above it too, in place."""
    size = len(matrix)
    for start in range(0, size, _SQUARE):
        rows = slice(start, start + _SQUARE)
        corner = matrix[rows, rows]
        np.copyto(corner, corner.T, where=np.tri(len(corner), k=-1, dtype=bool).T)
        matrix[rows, start + _SQUARE :] = matrix[start + _SQUARE :, rows].T


def stepped(x: Array, r: Array, change: Array, p: Array, q: Array, active: Array) -> Array:
    """x + change @ p for the rows in `active`, r - change @ q; in place. The norms of r.

    Args:
        x: rows of which those in `active` are taken.
        r: only those.
    """
    every = len(active) == len(x)

    def step(some: slice) -> Array:
        if every:
            x[:, some] += change @ p[:, some]
        else:
            x[active, some] += change @ p[:, some]
        part = r[:, some]
        part -= change @ q[:, some]
        return _squares(part)

    return np.sqrt(_summed(step, p.shape))


def _summed(work: Callable[[slice], Array], shape: tuple[int, ...]) -> Array:
    """The sum of what `work` makes of consecutive columns of (k, p) rows."""

    def total(some: list[slice]) -> Array:
        return functools.reduce(operator.iadd, map(work, some))

    return functools.reduce(operator.iadd, _halves(total, shape))


def _each(work: Callable[[slice], None], shape: tuple[int, ...]) -> None:
    """`work` on consecutive columns of (k, p) rows."""

    def on_all(some: list[slice]) -> None:
        for piece in some:
            work(piece)

    _halves(on_all, shape)


def _halves(work: Callable[[list[slice]], Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """What `work` makes of the `pieces` of (k, p) rows, or, where they are many, of each half of these."""
    some = list(pieces(shape))
    if len(some) < _MANY:
        return (work(some),)
    middle = len(some) // 2
    return side_by_side(work, some[:middle], some[middle:])


def _squares(rows: Array) -> Array:
    wide = _wide(rows)
    squares: Array = np.einsum("ij,ij->i", wide, wide)
    return squares


def _wide(rows: Array) -> Array:
    return rows.astype(np.float64, copy=False)
