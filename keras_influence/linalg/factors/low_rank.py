"""A low-rank eigendecomposition plus damping, and its inverse."""

import dataclasses

import numpy.typing as npt

from keras_influence.linalg.arrays import Array


@dataclasses.dataclass(frozen=True)
class LowRank:
    """H ≈ Uᵀ diag(eigenvalues) U, with the damping λ of A = H + λI kept apart.

    Attributes:
        vectors: U, (rank, p), orthonormal rows.
        eigenvalues: (rank,) of H, largest magnitude first.
        damping: λ.
    """

    vectors: Array
    eigenvalues: Array
    damping: float

    def solve(self, rows: Array) -> Array:
        """(Uᵀ diag(eigenvalues) U + λI)⁻¹ times (k, p) rows.

        Without damping the smallest eigenvalue stands for all directions outside U.
        """
        return self._scaled(rows, 1 / (self.damping or self.eigenvalues[-1]))

    def project(self, rows: Array) -> Array:
        """Uᵀ diag(eigenvalues + λ)⁻¹ U times (k, p) rows: nothing outside U."""
        return self._scaled(rows, 0.0)

    def precondition(self, rows: Array) -> Array:
        """`solve`, with the smallest eigenvalue for all directions outside U.

        That is the preconditioner of Frangella, Tropp and Udell (2023, eq. 1.3), up to a factor.
        """
        return self._scaled(rows, 1 / (self.eigenvalues[-1] + self.damping))

    def astype(self, dtype: npt.DTypeLike) -> "LowRank":
        """The same with U in another precision, in which its products are then made."""
        return dataclasses.replace(self, vectors=self.vectors.astype(dtype, copy=False))

    def _scaled(self, rows: Array, outside: float) -> Array:
        scale = (1 / (self.eigenvalues + self.damping) - outside).astype(self.vectors.dtype)
        inside = (rows @ self.vectors.T) * scale
        return inside @ self.vectors + rows * self.vectors.dtype.type(outside)
