"""The dense solve."""

import dataclasses

import numpy as np
import scipy.linalg

from keras_influence.errors import SolverError
from keras_influence.linalg.solvers.base import Answer, Solver
from keras_influence.validate import check_number


@dataclasses.dataclass(frozen=True)
class DenseFactor:
    """A dense matrix in a form that solves for many right-hand sides.

    Attributes:
        kind: "cholesky", or "ldl" for an indefinite matrix.
        parts: what `scipy.linalg.cho_factor` or `scipy.linalg.ldl` returns.
    """

    kind: str
    parts: tuple


class Direct(Solver):
    """Write the matrix out and factorise it in float64: exact, and indefinite matrices too.

    Costs p products once, p² memory, p³ time.

    Args:
        max_size: refuse more parameters than this.
    """

    tol = 1e-3
    advice = "The matrix is close to singular: raise `damping`."

    def __init__(self, max_size=10_000):
        check_number("max_size", max_size, low=1, integer=True)
        self.max_size = max_size

    def factorise(self, operator):
        """Cholesky factor of the dense matrix, or its LDLᵀ where it is indefinite."""
        if operator.size > self.max_size:
            raise ValueError(
                f"method='direct' would write out a {operator.size} x {operator.size} matrix "
                f"({operator.size**2 * 8 / 1e9:.1f} GB). Use method='cg', or "
                f"Direct(max_size={operator.size}) if that is what you want."
            )
        matrix = operator.to_dense()
        try:
            return DenseFactor("cholesky", scipy.linalg.cho_factor(matrix, lower=True))
        except np.linalg.LinAlgError:
            return DenseFactor("ldl", scipy.linalg.ldl(matrix))

    def _solve(self, problem):
        kind, parts = problem.factor.kind, problem.factor.parts
        if kind == "cholesky":
            x = scipy.linalg.cho_solve(parts, problem.columns)
        else:
            x = _solve_ldl(*parts, problem.columns)
        problem.on_step(1, 0.0)
        return Answer(x, 1, positive_definite=kind == "cholesky")


def _solve_ldl(lower, diagonal, permutation, v):
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
