"""The search directions of block conjugate gradients: conjugate to those before, and none twice."""

from typing import Optional

import numpy as np
import scipy.linalg

from keras_influence.errors import NotFiniteError
from keras_influence.linalg.arrays import Array
from keras_influence.linalg.solvers.problem import Problem
from keras_influence.linalg.solvers.rounding import largest_eigenvalue, not_definite
from keras_influence.linalg.sweeps import conjugated, overlaps, turned

# Directions whose angle to the span of the others is smaller than the root of this are left out:
# in numbers of so many bytes, rounding is what is left of them.
_DEPENDENT = {2: 1e-4, 4: 1e-10, 8: 1e-12}


class Directions:
    """Search directions, the rows of P, conjugate to those before them, with images Q = P A.

    Args:
        problem: a `Problem`.
        z: (k, p) preconditioned residuals, which are overwritten.
        before: the `Directions` before this one, or None.

    Raises:
        NegativeCurvatureError, SingularError: A is not positive definite on them.
        NotFiniteError: a product with A is not finite.
    """

    p: Array
    q: Array
    _largest: float

    def __init__(self, problem: Problem, z: Array, before: Optional["Directions"]) -> None:
        # In the operator's precision, so that Q is the image of these very numbers.
        self.p = _basis(z, before)
        self.q = problem.system.matmat(self.p)
        energy = overlaps(self.p, self.q)
        if not np.isfinite(energy).all():
            raise NotFiniteError
        # Rayleigh quotients, as the directions are orthonormal.
        self._largest = max(energy.diagonal().max(), before._largest if before else 0.0)
        try:
            self._factor = scipy.linalg.cho_factor((energy + energy.T) / 2)
        except np.linalg.LinAlgError as error:
            # A preconditioner keeps the largest directions away from these.
            largest = max(self._largest, largest_eigenvalue(problem.system, self.p.dtype))
            about = self._smallest(before), largest, self.p.dtype, "CG"
            raise not_definite(*about) from error

    def coefficients(self, overlaps: Array) -> Array:
        """(P A Pᵀ)⁻¹ times (m, k) overlaps."""
        return scipy.linalg.cho_solve(self._factor, overlaps)

    def _smallest(self, before: Optional["Directions"]) -> float:
        """The smallest Ritz value of A on the span of these directions and those before."""
        blocks = [self] if before is None else [before, self]
        p, q = (np.vstack([getattr(b, name) for b in blocks]).astype(np.float64) for name in "pq")
        basis, triangle = np.linalg.qr(p.T)
        small = scipy.linalg.solve_triangular(triangle, q, trans="T") @ basis
        return float(np.linalg.eigvalsh((small + small.T) / 2)[0])


def _basis(z: Array, before: Directions | None) -> Array:
    """An orthonormal basis of the span of the rows of z, made conjugate to the directions before.

    Less what is dependent but for rounding.
    """
    if before is None:
        products = conjugated(z, None, None)
    else:
        change = before.coefficients(overlaps(before.q, z)).T.astype(z.dtype)
        products = conjugated(z, change, before.p)
    lengths = np.sqrt(np.diag(products))
    lengths[lengths == 0] = 1
    values, vectors = np.linalg.eigh(products / lengths[:, None] / lengths)
    kept = values > _DEPENDENT[z.dtype.itemsize] * values[-1]
    turn = (vectors[:, kept] / np.sqrt(values[kept])).T
    return turned(turn.astype(z.dtype), z, lengths.astype(z.dtype))
