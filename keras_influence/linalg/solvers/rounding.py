"""What is a negative eigenvalue, and what is rounding."""

import numpy as np
import numpy.typing as npt

from keras_influence.errors import NegativeCurvatureError, SingularError, SolverError

# Of bfloat16, which NumPy does not know.
_BFLOAT16 = 2.0**-7
# Eigenvalues of fewer units of rounding of the largest say nothing of their sign.
_UNITS = 4


def rounding_of(dtype: npt.DTypeLike) -> float:
    """The part of the largest eigenvalue that rounding in products of this type may amount to."""
    return _UNITS * eps_of(dtype)


def eps_of(dtype: npt.DTypeLike) -> float:
    """The distance from 1 to the next larger number of a type."""
    return _BFLOAT16 if np.dtype(dtype).kind == "V" else float(np.finfo(dtype).eps)


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
