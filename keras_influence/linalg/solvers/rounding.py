"""What is a negative eigenvalue, and what is rounding."""

import numpy as np
import numpy.typing as npt

from keras_influence.errors import NegativeCurvatureError, SingularError, SolverError
from keras_influence.linalg.operators.base import LinearOperator

# Of bfloat16, which NumPy does not know.
_BFLOAT16 = 2.0**-7
# Eigenvalues of fewer units of rounding of the largest say nothing of their sign.
_UNITS = 4
# Products that tell the size of the largest.
_STEPS = 5


def rounding_of(dtype: npt.DTypeLike) -> float:
    """The part of the largest eigenvalue that rounding in products of this type may amount to."""
    return _UNITS * eps_of(dtype)


def eps_of(dtype: npt.DTypeLike) -> float:
    """The distance from 1 to the next larger number of a type."""
    return _BFLOAT16 if np.dtype(dtype).kind == "V" else float(np.finfo(dtype).eps)


def largest_eigenvalue(operator: LinearOperator, dtype: npt.DTypeLike) -> float:
    """About the largest eigenvalue in size, by a few products with one vector."""
    v, size = np.random.default_rng(0).standard_normal((1, operator.size)).astype(dtype), 0.0
    for _ in range(_STEPS):
        v = operator.matmat(v / np.linalg.norm(v).astype(v.dtype))
        size = float(np.linalg.norm(v))
        if not 0 < size < np.inf:
            return 0.0
    return size


def not_definite(
    eigenvalue: float, largest: float, dtype: npt.DTypeLike, solver: str
) -> SolverError:
    """What to raise where a matrix with positive eigenvalues was needed.

    Args:
        eigenvalue: one that is not positive.
        largest: about the largest one.
        dtype: of the products, whose rounding may be all there is to it.
        solver: what met it.
    """
    least = rounding_of(dtype) * largest
    if abs(eigenvalue) <= least:
        return SingularError(eigenvalue, least, solver)
    return NegativeCurvatureError(eigenvalue, solver)
