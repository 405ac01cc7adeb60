"""Contributions of single examples to a Gauss-Newton matrix, G = Σ g gᵀ, and their inverse.

With m of them as the rows of J the damped matrix is Jᵀ J + λI, and by Woodbury's identity

    (Jᵀ J + λI)⁻¹ = (I - Jᵀ (J Jᵀ + λI)⁻¹ J) / λ

takes a matrix of m × m instead of p × p.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.linalg

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.rows import Rows

# A damping that is less than so many units of rounding of the largest eigenvalue is not seen; and steps
# after which that is known well enough.
_LOST, _STEPS = 100, 10


@dataclasses.dataclass(frozen=True)
class ContributionsFactor:
    """The damped matrix of some contributions, zero outside of them.

    With a regulariser whose Hessian is the diagonal r, in the coordinates in which r + λ is one:
    with S = diag(r + λ)^(-1/2) and δ = 1 the matrix is S⁻¹ (S Jᵀ J S + δI) S⁻¹, its inverse
    S (S Jᵀ J S + δI)⁻¹ S. Where δ is more, all of r + λ is as many times larger.

    Attributes:
        parts: of the rows J, or J S; together they hold each position once at most.
        cholesky: (m, m) lower Cholesky factor of J Jᵀ + λI, or J S² Jᵀ + δI.
        damping: λ, or δ in such coordinates; more where that would be lost to rounding.
        scale: (p,) the diagonal of S; empty without regulariser.
        whole: whether the contributions are all that there are.
    """

    parts: tuple[Rows, ...]
    cholesky: Array
    damping: float
    scale: Array
    whole: bool = False

    @classmethod
    def of(
        cls, parts: tuple[Rows, ...], damping: float, regulariser: Array, whole: bool = False
    ) -> "ContributionsFactor":
        """Of (m, p) rows with λ > 0 and (p,) a regulariser's diagonal, in their precision."""
        scale = np.zeros(0)
        if regulariser.any():
            scale, damping = (np.maximum(regulariser, 0) + damping) ** -0.5, 1.0
            parts = tuple(part.stretched(scale) for part in parts)
        first, *others = parts
        gram = first.gram()
        for part in others:
            gram += part.gram()
        # Less than this is lost beside the largest of the contributions: what is divided by it is rounding.
        damping = max(damping, _LOST * np.finfo(gram.dtype).eps * _largest(gram))
        gram[np.diag_indices(len(gram))] += damping
        cholesky = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True)
        return cls(parts, cholesky, damping, scale, whole)

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows."""
        x = self._scaled(rows)
        x = x / x.dtype.type(self.damping)
        coefficients = scipy.linalg.cho_solve((self.cholesky, True), self._products(x).T).T
        for part in self.parts:
            x[:, part.positions.where] -= part.combined(coefficients)
        return self._scaled(x)

    def refined(self, rows: Array) -> Array:
        """The same, less most of what rounding does to it.

        Directions in which the matrix is far above λ come out as differences of what is divided by
        λ. The products alone lose nothing, and tell what is left.
        """
        x = self.precondition(rows)
        return x + self.precondition(rows - self._image(x))

    def _image(self, x: Array) -> Array:
        """The matrix times (k, p) rows."""
        x = self._unscaled(x)
        products, image = self._products(x), x * x.dtype.type(self.damping)
        for part in self.parts:
            image[:, part.positions.where] += part.combined(products)
        return self._unscaled(image)

    def _scaled(self, rows: Array) -> Array:
        """S times (k, p) rows."""
        return rows * self.scale if self.scale.size else rows

    def _unscaled(self, rows: Array) -> Array:
        """S⁻¹ times (k, p) rows."""
        return rows / self.scale if self.scale.size else rows

    def _products(self, x: Array) -> Array:
        """J times (k, p) rows, (k, m)."""
        found = np.zeros((len(x), len(self.cholesky)), x.dtype)
        for part in self.parts:
            found += part.products(x[:, part.positions.where])
        return found

    def astype(self, dtype: npt.DTypeLike) -> "ContributionsFactor":
        """The same in another precision."""
        parts = tuple(part.astype(dtype) for part in self.parts)
        cholesky, scale = (a.astype(dtype, copy=False) for a in (self.cholesky, self.scale))
        return ContributionsFactor(parts, cholesky, self.damping, scale, self.whole)


def _largest(gram: Array) -> float:
    """The largest eigenvalue of a positive semi-definite matrix, about: by powers of it."""
    v, length = np.ones(len(gram), gram.dtype), 0.0
    v += np.random.default_rng(0).standard_normal(len(v)).astype(v.dtype)
    for _ in range(_STEPS):
        v = gram @ (v / np.linalg.norm(v))
        length = float(np.linalg.norm(v))
        if not length > 0:
            break
    return length
