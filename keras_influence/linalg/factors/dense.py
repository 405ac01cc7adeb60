"""A matrix that is written out and factorised."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import scipy.linalg

from keras_influence.errors import SolverError
from keras_influence.linalg.arrays import Array
from keras_influence.linalg.sweeps import reflect


@dataclasses.dataclass(frozen=True)
class DenseFactor:
    """A dense matrix in a form that solves for many right-hand sides.

    Attributes:
        kind: "cholesky", or "ldl" for an indefinite matrix.
        parts: what `scipy.linalg.cho_factor` or `scipy.linalg.ldl` returns.
    """

    kind: str
    parts: tuple[Any, ...]

    @classmethod
    def of(cls, matrix: Array, rounding: float = 0.0) -> "DenseFactor":
        """Cholesky factor of a symmetric matrix, or its LDLᵀ where it is indefinite.

        Args:
            matrix: (p, p) float64 array, which the factor takes the place of.
            rounding: eigenvalues that are a smaller part than this of the largest may be negative by
                rounding alone: then so much is added to all of them.
        """
        added = rounding * max(float(np.abs(row).sum()) for row in matrix) if rounding else 0.0
        diagonal = matrix.diagonal().copy()
        for shift in dict.fromkeys([0.0, added]):
            np.einsum("ii->i", matrix)[:] = diagonal + shift
            with contextlib.suppress(np.linalg.LinAlgError):
                # Turned, for LAPACK then works in this very array, on what is here above the diagonal.
                return cls("cholesky", scipy.linalg.cho_factor(matrix.T, True, overwrite_a=True))
            reflect(matrix)
        np.einsum("ii->i", matrix)[:] = diagonal
        return cls("ldl", scipy.linalg.ldl(matrix, overwrite_a=True))

    def solve(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows. LAPACK's right-hand sides are columns."""
        if self.kind == "cholesky":
            x: Array = scipy.linalg.cho_solve(self.parts, rows.T)
        else:
            lower, diagonal, permutation = self.parts
            x = _solve_ldl(lower, diagonal, permutation, rows.T)
        return x.T

    def precondition(self, rows: Array) -> Array:
        """The same, as other factors have it."""
        return self.solve(rows)


def _solve_ldl(lower: Array, diagonal: Array, permutation: Array, v: Array) -> Array:
    """Solve (L D Lᵀ) x = v; `lower[permutation]` is triangular, D has 1 x 1 and 2 x 2 blocks."""
    triangle = lower[permutation]
    y = scipy.linalg.solve_triangular(triangle, v[permutation], lower=True, unit_diagonal=True)
    bands = np.zeros((3, len(diagonal)))
    bands[0, 1:], bands[1], bands[2, :-1] = (np.diag(diagonal, k) for k in (1, 0, -1))
    try:
        y = scipy.linalg.solve_banded((1, 1), bands, y)
    except np.linalg.LinAlgError as error:
        raise SolverError(
            "The curvature matrix is singular. Set `damping` to a positive number."
        ) from error
    x = np.empty_like(y)
    x[permutation] = scipy.linalg.solve_triangular(
        triangle, y, lower=True, unit_diagonal=True, trans="T"
    )
    return x
