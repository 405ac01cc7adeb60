"""Blocks of a matrix, each diagonal in a basis that is known: a Kronecker product, or many small ones."""

import dataclasses
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from keras_influence.linalg.arrays import Array, side_by_side
from keras_influence.linalg.factors.positions import Positions

# Numbers of vectors that are worth another thread.
_MANY = 2**17


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
    positions: Positions
    q_inputs: Array
    q_outputs: Array
    eigenvalues: Array
    by_example: bool = True
    rest: float = 0.0

    @property
    def missing(self) -> int:
        """How many directions are not in the bases."""
        return self.positions.size - self.eigenvalues.size

    def turned(self, v: Array) -> Array:
        """Q_Aᵀ v Q_S for each of (k, K, O): coordinates in the bases, (k, r, s)."""
        return _multiplied(self.q_inputs.T, v, self.q_outputs)

    def turned_back(self, v: Array) -> Array:
        """Q_A v Q_Sᵀ for each of (k, r, s): from coordinates in the bases."""
        return _multiplied(self.q_inputs, v, self.q_outputs.T)

    def with_diagonal(self, d: Array) -> "Block":
        """With a diagonal (p,) matrix added, of which the diagonal in the bases is taken."""
        inside, rest = self.of_diagonal(d), self.rest
        if self.missing:
            rest += float(self.positions.taken(d).sum() - inside.sum()) / self.missing
        values = (self.eigenvalues + inside).astype(self.eigenvalues.dtype, copy=False)
        return dataclasses.replace(self, eigenvalues=values, rest=rest)

    def of_diagonal(self, d: Array) -> Array:
        """The diagonal of Qᵀ diag(d) Q for a (p,) vector, like `eigenvalues`."""
        d = self.positions.taken(d)
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
    positions: Positions
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
        return np.einsum("mvw,mv->mw", self.vectors**2, self.positions.taken(d))

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


def _multiplied(left: Array, v: Array, right: Array) -> Array:
    """left v right for each of (k, K, O); an empty matrix is the identity."""
    if len(v) < 2 or v.size < _MANY:
        return _product(left, v, right)
    middle = len(v) // 2
    halves = side_by_side(lambda some: _product(left, some, right), v[:middle], v[middle:])
    return np.concatenate(halves)


def _product(left: Array, v: Array, right: Array) -> Array:
    """The same by two large products."""
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
