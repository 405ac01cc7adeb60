"""Block conjugate gradients (O'Leary 1980), preconditioned, for many right-hand sides."""

from typing import Any, Optional

import numpy as np
import scipy.linalg

from keras_influence.errors import NegativeCurvatureError, SolverError
from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers import preconditioners
from keras_influence.linalg.solvers.base import Answer, Problem, Solver, row_norms
from keras_influence.validate import check_number

# Directions whose angle to the span of the others is smaller than the root of this are left out.
_DEPENDENT = 1e-12
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
        preconditioner: None, or a `Nystrom` or `EKFAC` that is made once and makes each pass
            go further, or "auto": a `Nystrom(50)` where the curvature allows one.
    """

    advice = (
        "Raise `max_iter`, `tol` or `damping` (damping='auto' takes it from the scale of the "
        "curvature, which targets that are not scaled make large), or use "
        "CG(preconditioner=Nystrom())."
    )

    def __init__(
        self,
        tol: float = 1e-5,
        max_iter: int = 1000,
        preconditioner: preconditioners.Preconditioner = None,
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
            self._run(problem, x, r, active, iterations)
            r, before = problem.remainder(x), left
        return Answer(x, iterations, remainder=r)

    def _run(self, problem: Problem, x: Array, r: Array, active: Array, iterations: Array) -> None:
        """The recurrence from x with the residual r, for the rows in `active`; all in place."""
        precondition = problem.factor.precondition if problem.factor else lambda r: r
        norms, block = row_norms(problem.rows), None
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        while active.size and iterations.max() < self.max_iter:
            block = _Block(problem, precondition(r[active]), block)
            change = block.coefficients(block.p @ r[active].T).T
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
        SolverError: a product with A is not finite.
    """

    p: Array
    q: Array

    def __init__(self, problem: Problem, z: Array, before: Optional["_Block"]) -> None:
        if before is not None:
            z = z - before.coefficients(before.q @ z.T).T @ before.p
        # In the operator's precision, so that Q is the image of these very numbers.
        dtype = problem.system.dtype
        self.p = _basis(z).astype(dtype, copy=False).astype(np.float64, copy=False)
        self.q = problem.product(self.p)
        energy = self.p @ self.q.T
        if not np.isfinite(energy).all():
            raise SolverError(
                "a product with the curvature is NaN or infinite: some layer or loss has no finite "
                "second derivative at these data, as the square root of 0. curvature='gauss_newton' "
                "needs none of the network's."
            )
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
        p, q = (np.vstack([getattr(b, name) for b in blocks]) for name in "pq")
        basis, triangle = np.linalg.qr(p.T)
        small = scipy.linalg.solve_triangular(triangle, q, trans="T") @ basis
        return float(np.linalg.eigvalsh((small + small.T) / 2)[0])


def _basis(z: Array) -> Array:
    """An orthonormal basis of the rows' span, less what is dependent but for rounding."""
    z = z / row_norms(z).clip(1e-300)[:, None]
    values, vectors = np.linalg.eigh(z @ z.T)
    kept = values > _DEPENDENT * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])).T @ z
