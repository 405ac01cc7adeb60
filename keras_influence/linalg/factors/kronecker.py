"""A block-diagonal matrix whose blocks are diagonal in a Kronecker basis, and its inverse."""

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.linalg

from keras_influence.linalg.arrays import Array


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer's block of the matrix: (Q_A ⊗ Q_S) diag(Λ) (Q_A ⊗ Q_S)ᵀ.

    Attributes:
        name: the layer's path.
        positions: (K, O) positions in θ of W, the bias as its last row.
        q_inputs: Q_A, (K, K); empty for the identity, where inputs are indices.
        q_outputs: Q_S, (O, O).
        eigenvalues: Λ, (K, O).
    """

    name: str
    positions: Array
    q_inputs: Array
    q_outputs: Array
    eigenvalues: Array

    def solve(self, rows: Array, damping: float) -> Array:
        """(block + λI)⁻¹ times the block's part of (k, p) rows, (k, K · O)."""
        v = rows[:, self.positions.ravel()].reshape(-1, *self.positions.shape)
        inner = self._turned(v, self.q_inputs, self.q_outputs)
        inner /= self.eigenvalues + damping
        x = self._turned(inner, self.q_inputs.T, self.q_outputs.T)
        return x.reshape(len(x), -1)

    def astype(self, dtype: npt.DTypeLike) -> "Block":
        """The same with its bases in another precision, in which its products are then made."""
        return dataclasses.replace(
            self,
            q_inputs=self.q_inputs.astype(dtype, copy=False),
            q_outputs=self.q_outputs.astype(dtype, copy=False),
        )

    @staticmethod
    def _turned(v: Array, q_inputs: Array, q_outputs: Array) -> Array:
        """Q_Aᵀ v Q_S for each of (k, K, O)."""
        v = v @ q_outputs
        return q_inputs.T @ v if q_inputs.size else v


@dataclasses.dataclass(frozen=True)
class Kronecker:
    """The damped block-diagonal matrix: one `Block` a layer, and the rest.

    Attributes:
        blocks: of the layers that are covered, without damping.
        rest: (r,) positions in θ that no block covers.
        cholesky: (r, r) lower Cholesky factor of their damped block; empty if r is large.
        scale: the mean eigenvalue of that block, λ included.
        damping: λ.
    """

    blocks: tuple[Block, ...]
    rest: Array
    cholesky: Array
    scale: float
    damping: float

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows. A large rest counts as a multiple of I."""
        x = np.empty_like(rows)
        for block in self.blocks:
            x[:, block.positions.ravel()] = block.solve(rows, self.damping)
        rest = rows[:, self.rest]
        if self.cholesky.size:
            x[:, self.rest] = scipy.linalg.cho_solve((self.cholesky, True), rest.T).T
        else:
            x[:, self.rest] = rest / self.scale
        return x

    def astype(self, dtype: npt.DTypeLike) -> "Kronecker":
        """The same with its blocks in another precision."""
        blocks = tuple(block.astype(dtype) for block in self.blocks)
        return dataclasses.replace(self, blocks=blocks)
