"""A block-diagonal matrix whose blocks are diagonal in known bases, and functions of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from keras_influence.linalg.arrays import Array

# Numbers of a block's coordinates that are made at once, of as many vectors as have them.
_NUMBERS = 2**23


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer's block of the matrix: (Q_A ⊗ Q_S) diag(Λ) (Q_A ⊗ Q_S)ᵀ.

    Bases may have fewer columns than rows, r and s of them, where few examples span no more: in all
    other directions the block is a multiple of the identity.

    Attributes:
        name: the layer's path.
        positions: (K, O) positions in θ of W, the bias as its last row.
        q_inputs: Q_A, (K, r); empty for the identity, where inputs are indices.
        q_outputs: Q_S, (O, s); empty for the identity, where there are too many outputs.
        eigenvalues: Λ, (r, s).
        by_example: whether coordinates of single examples' gradients are known.
        rest: the eigenvalue of all directions that are not in the bases.
        outside: as of `Channels`: never.
    """

    outside: ClassVar[bool] = False

    name: str
    positions: Array
    q_inputs: Array
    q_outputs: Array
    eigenvalues: Array
    by_example: bool = True
    rest: float = 0.0

    @property
    def missing(self) -> int:
        """How many directions are not in the bases."""
        return int(self.positions.size - self.eigenvalues.size)

    def turned(self, v: Array) -> Array:
        """Q_Aᵀ v Q_S for each of (k, K, O): coordinates in the bases, (k, r, s)."""
        return _multiplied(self.q_inputs.T, v, self.q_outputs)

    def turned_back(self, v: Array) -> Array:
        """Q_A v Q_Sᵀ for each of (k, r, s): from coordinates in the bases."""
        return _multiplied(self.q_inputs, v, self.q_outputs.T)

    def with_diagonal(self, d: Array) -> "Block":
        """With a diagonal (p,) matrix added, of which the diagonal in the bases is taken."""
        values = self.eigenvalues + self.of_diagonal(d)
        rest = self.rest
        if self.missing:
            extra = d[self.positions].sum() - self.of_diagonal(d).sum()
            rest += max(0.0, float(extra)) / self.missing
        values = values.astype(self.eigenvalues.dtype, copy=False)
        return dataclasses.replace(self, eigenvalues=values, rest=rest)

    def of_diagonal(self, d: Array) -> Array:
        """The diagonal of Qᵀ diag(d) Q for a (p,) vector, like `eigenvalues`."""
        d = d[self.positions]
        d = d @ self.q_outputs**2 if self.q_outputs.size else d
        return self.q_inputs.T**2 @ d if self.q_inputs.size else d

    def narrowed(self, chosen: Array) -> tuple["Block", Array]:
        """With no more columns of the bases than some coordinates need, and their places then."""
        height, width = self.eigenvalues.shape
        rows, columns = np.divmod(chosen, width)
        kept_rows, rows = _needed(self.q_inputs, rows, height)
        kept_columns, columns = _needed(self.q_outputs, columns, width)
        narrow = dataclasses.replace(
            self,
            q_inputs=self.q_inputs[:, kept_rows] if self.q_inputs.size else self.q_inputs,
            q_outputs=self.q_outputs[:, kept_columns] if self.q_outputs.size else self.q_outputs,
            eigenvalues=self.eigenvalues[np.ix_(kept_rows, kept_columns)],
        )
        return narrow, rows * len(kept_columns) + columns

    def astype(self, dtype: npt.DTypeLike) -> "Block":
        """The same with its bases in another precision, in which its products are then made."""
        return dataclasses.replace(
            self,
            q_inputs=self.q_inputs.astype(dtype, copy=False),
            q_outputs=self.q_outputs.astype(dtype, copy=False),
        )


@dataclasses.dataclass(frozen=True)
class Channels:
    """m small blocks side by side, each with its eigenvectors: one a channel, or a unit.

    Attributes:
        name: the layer's path, or what the weights have in common.
        positions: (m, w) positions in θ of the weights of each block.
        vectors: (m, w, w) their eigenvectors, as columns.
        eigenvalues: (m, w).
        by_example: as of `Block`.
        outside: whether they stand for weights in no layer that is covered.
        missing, rest: as of `Block`: there are no other directions.
    """

    missing: ClassVar[int] = 0
    rest: ClassVar[float] = 0.0

    name: str
    positions: Array
    vectors: Array
    eigenvalues: Array
    by_example: bool = True
    outside: bool = False

    def turned(self, v: Array) -> Array:
        """Coordinates in the eigenvectors for each of (k, m, w)."""
        return np.matmul(v[..., None, :], self.vectors)[..., 0, :] if v.shape[2] > 1 else v

    def turned_back(self, v: Array) -> Array:
        """From coordinates in the eigenvectors, for each of (k, m, w)."""
        return np.matmul(self.vectors, v[..., None])[..., 0] if v.shape[2] > 1 else v

    def of_diagonal(self, d: Array) -> Array:
        """The diagonal of Qᵀ diag(d) Q for a (p,) vector, like `eigenvalues`."""
        return np.einsum("mvw,mv->mw", self.vectors**2, d[self.positions])

    def with_diagonal(self, d: Array) -> "Channels":
        """As of `Block`."""
        values = self.eigenvalues + self.of_diagonal(d)
        return dataclasses.replace(self, eigenvalues=values.astype(self.eigenvalues.dtype))

    def narrowed(self, chosen: Array) -> tuple["Channels", Array]:
        """Itself, and the same places: it is small."""
        return self, chosen

    def astype(self, dtype: npt.DTypeLike) -> "Channels":
        """The same with its vectors in another precision, in which its products are then made."""
        return dataclasses.replace(self, vectors=self.vectors.astype(dtype, copy=False))


AnyBlock: TypeAlias = Block | Channels


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
        for block, where in zip(self.blocks, self.places):
            factors = of(block.eigenvalues).astype(rows.dtype, copy=False)
            step = max(1, _NUMBERS // block.positions.size)
            for start in range(0, len(rows), step):
                some = slice(start, start + step)
                v = rows[some][:, where].reshape(-1, *block.positions.shape)
                y = block.turned(v)
                # Not in place: coordinates may be the very rows.
                back = _back(block, v, y, factors * y, of)
                x[some, where] = back.reshape(len(v), -1)
        return x

    def solved(self, rows: Array, y: Array, z: Array) -> Array:
        """The inverse times rows, where it is known what that is in the coordinates of the bases.

        Args:
            rows: (k, p).
            y: their coordinates.
            z: those of what is asked for, which need not be the inverse's.
        """
        x = np.empty_like(rows)
        for block, where, own in zip(self.blocks, self.places, _slices(self.blocks)):
            v = rows[:, where].reshape(-1, *block.positions.shape)
            before, after = (a[:, own].reshape(-1, *block.eigenvalues.shape) for a in (y, z))
            back = _back(block, v, before, after, self.inverse)
            x[:, where] = back.reshape(len(rows), -1)
        return x

    def turned(self, rows: Array) -> Array:
        """Coordinates of (k, p) rows in the bases of all blocks, block after block."""
        parts = [
            block.turned(rows[:, where].reshape(-1, *block.positions.shape)).reshape(len(rows), -1)
            for block, where in zip(self.blocks, self.places)
        ]
        return np.concatenate(parts, axis=1)

    def turned_back(self, coordinates: Array, size: int) -> Array:
        """Rows of `size` numbers from their coordinates."""
        x = np.zeros((len(coordinates), size), coordinates.dtype)
        for block, where, own in zip(self.blocks, self.places, _slices(self.blocks)):
            v = coordinates[:, own].reshape(-1, *block.eigenvalues.shape)
            x[:, where] = block.turned_back(v).reshape(len(coordinates), -1)
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

    @functools.cached_property
    def places(self) -> tuple[slice | Array, ...]:
        """The positions of each block, as a slice where they stand in one piece."""
        return tuple(in_one_piece(block.positions.ravel()) for block in self.blocks)

    def astype(self, dtype: npt.DTypeLike) -> "Kronecker":
        """The same with its blocks in another precision."""
        return Kronecker(tuple(block.astype(dtype) for block in self.blocks), self.damping)


def _back(block: AnyBlock, v: Array, y: Array, z: Array, of: Callable[[Array], Array]) -> Array:
    """What has the coordinates z, and outside of the bases is `of` times v, whose coordinates are y."""
    if not block.missing:
        return block.turned_back(z)
    level = v.dtype.type(of(np.array(block.rest)))
    return level * v + block.turned_back(z - level * y)


def _multiplied(left: Array, v: Array, right: Array) -> Array:
    """left v right for each of (k, K, O), by two large products; an empty matrix is the identity."""
    k, height, width = v.shape
    if right.size:
        v = (v.reshape(-1, width) @ right).reshape(k, height, -1)
    if not left.size:
        return v
    # All of the vectors side by side: products with narrow matrices are slow.
    turned = left @ v.transpose(1, 0, 2).reshape(height, -1)
    return turned.reshape(len(left), k, -1).transpose(1, 0, 2)


def _needed(basis: Array, places: Array, count: int) -> tuple[Array, Array]:
    """Which of `count` columns of a basis are needed, and the places among them; an identity is whole."""
    if not basis.size:
        return np.arange(count), places
    return np.unique(places, return_inverse=True)


def _slices(blocks: tuple[AnyBlock, ...]) -> list[slice]:
    """Where the coordinates of each block stand among those of all."""
    edges = np.cumsum([0, *(block.eigenvalues.size for block in blocks)])
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


def in_one_piece(positions: Array) -> slice | Array:
    """Positions as a slice, where they follow one another."""
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(positions) and (np.diff(positions) == 1).all():
        return slice(first, last + 1)
    return positions
