"""Kronecker factors of a block-diagonal matrix, and its inverse."""

import dataclasses

import numpy as np
import scipy.linalg


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
    positions: np.ndarray
    q_inputs: np.ndarray
    q_outputs: np.ndarray
    eigenvalues: np.ndarray

    def solve(self, columns, damping):
        """(block + λI)⁻¹ times the block's rows of (p, k) columns, (K · O, k)."""
        v = columns[self.positions.ravel()].T.reshape(-1, *self.positions.shape)
        inner = self._turned(v, self.q_inputs, self.q_outputs)
        inner /= self.eigenvalues + damping
        x = self._turned(inner, self.q_inputs.T, self.q_outputs.T)
        return x.reshape(len(x), -1).T

    def astype(self, dtype):
        """The same with its bases in another precision, in which its products are then made."""
        bases = {name: getattr(self, name).astype(dtype) for name in ("q_inputs", "q_outputs")}
        return dataclasses.replace(self, **bases)

    @staticmethod
    def _turned(v, q_inputs, q_outputs):
        """Q_Aᵀ v Q_S for each of (k, K, O)."""
        v = v @ q_outputs
        return q_inputs.T @ v if q_inputs.size else v


@dataclasses.dataclass(frozen=True)
class Kronecker:
    """A block-diagonal matrix: one Kronecker-factored block a layer, and the rest.

    Attributes:
        blocks: tuple of `Block`.
        rest: (r,) positions in θ that no block covers.
        cholesky: (r, r) lower Cholesky factor of their damped block; empty if r is large.
        scale: the mean eigenvalue of that block, λ included.
        damping: λ.
    """

    blocks: tuple
    rest: np.ndarray
    cholesky: np.ndarray
    scale: float
    damping: float

    def precondition(self, columns):
        """The damped block-diagonal matrix's inverse times (p, k) columns.

        A large rest counts as a multiple of the identity.
        """
        x = np.empty_like(columns)
        for block in self.blocks:
            x[block.positions.ravel()] = block.solve(columns, self.damping)
        if self.cholesky.size:
            x[self.rest] = scipy.linalg.cho_solve((self.cholesky, True), columns[self.rest])
        else:
            x[self.rest] = columns[self.rest] / self.scale
        return x

    def astype(self, dtype):
        """The same with its blocks in another precision."""
        blocks = tuple(block.astype(dtype) for block in self.blocks)
        return dataclasses.replace(self, blocks=blocks)
