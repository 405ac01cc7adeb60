"""Matrices that are dense in some coordinates and nearly diagonal in the others, and their inverses."""

import dataclasses

import numpy.typing as npt
import scipy.linalg

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.kronecker import Kronecker


@dataclasses.dataclass(frozen=True)
class TwoLevelFactor:
    """A `Kronecker` matrix whose R largest coordinates, of all blocks, are coupled by a dense part.

    Attributes:
        fine: the block-diagonal matrix.
        coarse: (R,) which of its coordinates, in the order of `Kronecker.turned`.
        cholesky: (R, R) lower Cholesky factor of the damped matrix in these.
    """

    fine: Kronecker
    coarse: Array
    cholesky: Array

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows."""
        if not self.coarse.size:
            return self.fine.precondition(rows)
        y = self.fine.turned(rows)
        inside = scipy.linalg.cho_solve((self.cholesky, True), y[:, self.coarse].T).T
        z = y * self.fine.inverse(self.fine.eigenvalues).astype(y.dtype, copy=False)
        z[:, self.coarse] = inside
        return self.fine.solved(rows, y, z)

    def astype(self, dtype: npt.DTypeLike) -> "TwoLevelFactor":
        """The same in another precision."""
        cholesky = self.cholesky.astype(dtype, copy=False)
        return TwoLevelFactor(self.fine.astype(dtype), self.coarse, cholesky)


@dataclasses.dataclass(frozen=True)
class CoupledFactor:
    """A multiple of the identity but for R coordinates, which a dense part couples.

    What a `TwoLevelFactor` is where nothing outside of these matters, for less work.

    Attributes:
        bases: blocks in whose coordinates these R are.
        coarse, cholesky: as of `TwoLevelFactor`.
        outside: the damped matrix in all other directions.
    """

    bases: Kronecker
    coarse: Array
    cholesky: Array
    outside: float

    def precondition(self, rows: Array) -> Array:
        """The matrix's inverse times (k, p) rows."""
        y = self.bases.turned(rows)
        inside = y[:, self.coarse]
        change = scipy.linalg.cho_solve((self.cholesky, True), inside.T).T - inside / self.outside
        y[:] = 0
        y[:, self.coarse] = change
        return rows / self.outside + self.bases.turned_back(y, rows.shape[1])

    def astype(self, dtype: npt.DTypeLike) -> "CoupledFactor":
        """The same in another precision."""
        cholesky = self.cholesky.astype(dtype, copy=False)
        return dataclasses.replace(self, bases=self.bases.astype(dtype), cholesky=cholesky)
