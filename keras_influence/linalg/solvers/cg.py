"""Block conjugate gradients (O'Leary 1980), preconditioned, for many right-hand sides."""

from typing import Any, Optional

import numpy as np
import scipy.linalg

from keras_influence.errors import NegativeCurvatureError, NotFiniteError
from keras_influence.linalg.arrays import Array, taking_turns
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers import preconditioners
from keras_influence.linalg.solvers.base import Answer, Problem, Solver, row_norms
from keras_influence.validate import check_number

# Directions whose angle to the span of the others is smaller than the root of this are left out:
# in numbers of so many bytes, rounding is what is left of them.
_DEPENDENT = {2: 1e-4, 4: 1e-10, 8: 1e-12}
# Columns that are added up at once.
_COLUMNS = 2**16
# Beginnings of the recurrence at most; below what its products can show, more do not help.
_RUNS = 3


class CG(Solver):
    """Conjugate gradients, for positive definite systems; exact up to `tol`.

    Each iteration costs one pass over the data, shared by all right-hand sides that have not
    converged yet. They share their search directions too: every solution is the best one, in the
    norm of A, in the span of all directions so far, so that many right-hand sides need far
    fewer passes than one. Dependent directions are left out (the breakdown-free form of
    Ji and Li 2017), so equal right-hand sides cost what one costs.

    Args:
        tol: relative residual ‖v - A x‖ / ‖v‖ to reach.
        max_iter: iterations at most.
        preconditioner: what is made once and makes each pass go further: a `TwoLevel`, `EKFAC` or
            `Nystrom`; None for the plain algorithm; "nystrom" for a `Nystrom(50)` where one can be
            made; or "auto": a `TwoLevel` where most of the parameters are in layers that it covers,
            else as "nystrom".
    """

    advice = (
        "Raise `max_iter`, `tol` or `damping` (damping='auto' takes it from the scale of the "
        "curvature, which targets that are not scaled make large)."
    )

    def __init__(
        self,
        tol: float = 1e-5,
        max_iter: int = 1000,
        preconditioner: preconditioners.Preconditioner = "auto",
    ) -> None:
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        self.tol: float = tol
        self.max_iter = max_iter
        self.preconditioner = preconditioners.check_preconditioner(preconditioner)

    def factorise(self, curvature: LinearOperator, damping: float) -> Any:
        return preconditioners.factorise(self.preconditioner, curvature, damping, rank=50)

    def _solve(self, problem: Problem) -> Answer:
        x, norms = problem.start.copy(), row_norms(problem.rows)
        x[norms == 0] = 0
        r, iterations = problem.remainder(x), np.zeros(len(norms), int)
        before = np.full(len(norms), np.inf)
        # In float32 the recurrence loses sight of the true residual: begin again from that.
        for _ in range(_RUNS):
            left = row_norms(r)
            active = np.flatnonzero((left > self.tol * norms) & (left < before))
            if not active.size or iterations.max() >= self.max_iter:
                break
            with taking_turns():
                self._run(problem, x, r, active, iterations)
            r, before = problem.remainder(x), left
        return Answer(x, iterations, remainder=r)

    def _run(self, problem: Problem, x: Array, r: Array, active: Array, iterations: Array) -> None:
        """The recurrence from x with the residual r, for the rows in `active`; all in place."""
        precondition = problem.factor.precondition if problem.factor else lambda r: r
        norms, block, dtype = row_norms(problem.rows), None, problem.system.dtype
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        while active.size and iterations.max() < self.max_iter:
            left = r[active].astype(dtype)
            block = _Block(problem, precondition(left).astype(dtype, copy=False), block)
            change = block.coefficients(overlaps(block.p, left)).T.astype(dtype)
            x[active] += change @ block.p
            r[active] -= change @ block.q
            iterations[active] += 1
            left = row_norms(r[active])
            problem.on_step(int(iterations.max()), float((left / norms[active]).max()))
            active = active[left > target[active]]


class _Block:
    """Search directions, the rows of P, conjugate to those before them, with images Q = P A.

    Args:
        problem: a `Problem`.
        z: (k, p) preconditioned residuals.
        before: the `_Block` before this one, or None.

    Raises:
        NegativeCurvatureError: A is not positive definite on them.
        NotFiniteError: a product with A is not finite.
    """

    p: Array
    q: Array

    def __init__(self, problem: Problem, z: Array, before: Optional["_Block"]) -> None:
        if before is not None:
            z = z - before.coefficients(overlaps(before.q, z)).T.astype(z.dtype) @ before.p
        # In the operator's precision, so that Q is the image of these very numbers.
        self.p = _basis(z)
        self.q = problem.system.matmat(self.p)
        energy = overlaps(self.p, self.q)
        if not np.isfinite(energy).all():
            raise NotFiniteError
        try:
            self._factor = scipy.linalg.cho_factor((energy + energy.T) / 2)
        except np.linalg.LinAlgError as error:
            raise NegativeCurvatureError(self._smallest(before), "CG") from error

    def coefficients(self, overlaps: Array) -> Array:
        """(P A Pᵀ)⁻¹ times (m, k) overlaps."""
        return scipy.linalg.cho_solve(self._factor, overlaps)

    def _smallest(self, before: Optional["_Block"]) -> float:
        """The smallest Ritz value of A on the span of these directions and those before."""
        blocks = [self] if before is None else [before, self]
        p, q = (np.vstack([getattr(b, name) for b in blocks]).astype(np.float64) for name in "pq")
        basis, triangle = np.linalg.qr(p.T)
        small = scipy.linalg.solve_triangular(triangle, q, trans="T") @ basis
        return float(np.linalg.eigvalsh((small + small.T) / 2)[0])


def _basis(z: Array) -> Array:
    """An orthonormal basis of the rows' span, less what is dependent but for rounding."""
    z = z / row_norms(z).clip(1e-300)[:, None].astype(z.dtype)
    values, vectors = np.linalg.eigh(overlaps(z, z))
    kept = values > _DEPENDENT[z.dtype.itemsize] * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])).T.astype(z.dtype) @ z


def overlaps(a: Array, b: Array) -> Array:
    """a bᵀ for (k, p) and (m, p) rows, summed up in float64, (k, m)."""
    total = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        total += a[:, some].astype(np.float64, copy=False) @ b[:, some].T.astype(np.float64)
    return total
