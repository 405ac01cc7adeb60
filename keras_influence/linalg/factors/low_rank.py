"""A low-rank eigendecomposition plus damping, and its inverse."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LowRank:
    """H ≈ U diag(eigenvalues) Uᵀ, with the damping λ of A = H + λI kept apart.

    Attributes:
        vectors: U, (p, rank), orthonormal.
        eigenvalues: (rank,), largest magnitude first.
        damping: λ.
    """

    vectors: np.ndarray
    eigenvalues: np.ndarray
    damping: float

    def solve(self, columns):
        """(U diag(eigenvalues) Uᵀ + λI)⁻¹ times (p, k) columns.

        Without damping the smallest eigenvalue stands for all directions outside U.
        """
        return self._scaled(columns, 1 / (self.damping or self.eigenvalues[-1]))

    def project(self, columns):
        """U diag(eigenvalues + λ)⁻¹ Uᵀ times (p, k) columns: nothing outside U."""
        return self._scaled(columns, 0.0)

    def precondition(self, columns):
        """`solve`, with the smallest eigenvalue for all directions outside U.

        That is the preconditioner of Frangella, Tropp and Udell (2023, eq. 1.3), up to a factor.
        """
        return self._scaled(columns, 1 / (self.eigenvalues[-1] + self.damping))

    def astype(self, dtype):
        """The same with U in another precision, in which its products are then made."""
        return dataclasses.replace(self, vectors=self.vectors.astype(dtype))

    def _scaled(self, columns, outside):
        scale = (1 / (self.eigenvalues + self.damping) - outside).astype(self.vectors.dtype)
        inside = scale[:, None] * (self.vectors.T @ columns)
        return (inside.T @ self.vectors.T).T + columns * self.vectors.dtype.type(outside)
