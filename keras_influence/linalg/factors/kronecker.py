"""A block-diagonal matrix whose blocks are diagonal in known bases, and functions of it."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.blocks import AnyBlock

# Numbers of a block's coordinates that are made at once, of as many vectors as have them.
_NUMBERS = 2**23


@dataclasses.dataclass(frozen=True)
class Kronecker:
    """The damped block-diagonal matrix.

    Attributes:
        blocks: without damping; together they cover all positions, if not `narrowed`.
        damping: λ.
    """

    blocks: tuple[AnyBlock, ...]
    damping: float

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows."""
        return self.function(rows, self.inverse)

    def inverse(self, eigenvalues: Array) -> Array:
        """What eigenvalues without damping are in the inverse."""
        return np.asarray(1 / (eigenvalues + self.damping))

    def function(self, rows: Array, of: Callable[[Array], Array]) -> Array:
        """A function of the undamped matrix times (k, p) rows.

        Args:
            rows: (k, p).
            of: the function, of eigenvalues.
        """
        x = np.empty_like(rows)
        for block in self.blocks:
            factors = of(block.eigenvalues).astype(rows.dtype, copy=False)
            step = max(1, _NUMBERS // block.positions.size)
            for start in range(0, len(rows), step):
                some = slice(start, start + step)
                v = block.positions.taken(rows[some])
                y = block.turned(v)
                # Not in place: coordinates may be the very rows.
                back = _back(block, v, y, factors * y, of)
                x[some, block.positions.where] = back.reshape(len(v), -1)
        return x

    def solved(self, rows: Array, y: Array, z: Array) -> Array:
        """The inverse times rows, where it is known what that is in the coordinates of the bases.

        Args:
            rows: (k, p).
            y: their coordinates.
            z: those of what is asked for, which need not be the inverse's.
        """
        x = np.empty_like(rows)
        for block, own in zip(self.blocks, _slices(self.blocks)):
            v = block.positions.taken(rows)
            before, after = (a[:, own].reshape(-1, *block.eigenvalues.shape) for a in (y, z))
            back = _back(block, v, before, after, self.inverse)
            x[:, block.positions.where] = back.reshape(len(rows), -1)
        return x

    def turned(self, rows: Array) -> Array:
        """Coordinates of (k, p) rows in the bases of all blocks, block after block."""
        parts = [block.turned(block.positions.taken(rows)) for block in self.blocks]
        return np.concatenate([part.reshape(len(rows), -1) for part in parts], axis=1)

    def turned_back(self, coordinates: Array, size: int) -> Array:
        """Rows of `size` numbers from their coordinates."""
        x = np.zeros((len(coordinates), size), coordinates.dtype)
        for block, own in zip(self.blocks, _slices(self.blocks)):
            v = coordinates[:, own].reshape(-1, *block.eigenvalues.shape)
            back = block.turned_back(v)
            x[:, block.positions.where] = back.reshape(len(coordinates), -1)
        return x

    def narrowed(self, chosen: Array) -> tuple["Kronecker", Array]:
        """What some coordinates need: their blocks, with fewer columns; and their places in it.

        Args:
            chosen: (R,) of the coordinates, sorted, in the order of `turned`.
        """
        blocks, places, start = [], [], 0
        for block, own in zip(self.blocks, _slices(self.blocks)):
            mine = slice(*np.searchsorted(chosen, (own.start, own.stop)))
            if mine.start == mine.stop:
                continue
            narrow, where = block.narrowed(chosen[mine] - own.start)
            blocks.append(narrow)
            places.append(start + where)
            start += narrow.eigenvalues.size
        return Kronecker(tuple(blocks), self.damping), np.concatenate(places)

    @functools.cached_property
    def eigenvalues(self) -> Array:
        """Those of the undamped matrix in the bases, in the order of `turned`."""
        return np.concatenate([block.eigenvalues.ravel() for block in self.blocks])

    @property
    def singular(self) -> bool:
        """Whether some eigenvalue is not positive without damping."""
        rests = [block.rest for block in self.blocks if block.missing]
        return bool((self.eigenvalues <= 0).any()) or any(rest <= 0 for rest in rests)

    def without(self, chosen: Array) -> tuple[float, float]:
        """The largest eigenvalue outside of some coordinates, and the mean of all there; infinite if there are none.

        Args:
            chosen: as of `narrowed`.
        """
        others = np.delete(self.eigenvalues, chosen)
        rests = [(block.rest, block.missing) for block in self.blocks if block.missing]
        count = len(others) + sum(missing for _, missing in rests)
        if not count:
            return np.inf, np.inf
        total = others.sum(dtype=float) + sum(rest * missing for rest, missing in rests)
        largest = max([others.max(initial=-np.inf), *(rest for rest, _ in rests)])
        return float(largest), float(total / count)

    def astype(self, dtype: npt.DTypeLike) -> "Kronecker":
        """The same with its blocks in another precision."""
        return Kronecker(tuple(block.astype(dtype) for block in self.blocks), self.damping)


def _back(block: AnyBlock, v: Array, y: Array, z: Array, of: Callable[[Array], Array]) -> Array:
    """What has the coordinates z, and outside of the bases is `of` times v, whose coordinates are y."""
    if not block.missing:
        return block.turned_back(z)
    level = v.dtype.type(of(np.array(block.rest)))
    return level * v + block.turned_back(z - level * y)


def _slices(blocks: tuple[AnyBlock, ...]) -> list[slice]:
    """Where the coordinates of each block stand among those of all."""
    edges = np.cumsum([0, *(block.eigenvalues.size for block in blocks)])
    return [slice(a, b) for a, b in zip(edges, edges[1:])]
