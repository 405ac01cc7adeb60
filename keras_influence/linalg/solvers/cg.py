"""Block conjugate gradients (O'Leary 1980), preconditioned, for many right-hand sides."""

import numpy as np
import scipy.linalg

from keras_influence.errors import NegativeCurvatureError, SolverError
from keras_influence.linalg.solvers import preconditioners
from keras_influence.linalg.solvers.base import Answer, Solver, column_norms
from keras_influence.validate import check_number

# Directions whose angle to the span of the others is smaller than the root of this are left out.
_DEPENDENT = 1e-12


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

    advice = "Raise `max_iter`, `damping` or `tol`, or use CG(preconditioner=Nystrom())."

    def __init__(self, tol=1e-5, max_iter=1000, preconditioner=None):
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        self.tol = tol
        self.max_iter = max_iter
        self.preconditioner = preconditioners.check_preconditioner(preconditioner)

    def factorise(self, operator):
        return preconditioners.factorise(self.preconditioner, operator, rank=50)

    def _solve(self, problem):
        precondition = problem.factor.precondition if problem.factor else lambda r: r
        x, norms = problem.start.copy(), column_norms(problem.columns)
        r = problem.columns - problem.product(x) if x.any() else problem.columns.copy()
        x[:, norms == 0] = r[:, norms == 0] = 0
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        iterations = np.zeros(len(norms), int)
        active = np.flatnonzero(column_norms(r) > target)
        block = None
        while active.size and iterations.max() < self.max_iter:
            z = precondition(r[:, active])
            block = _Block(problem, z, block)
            change = block.coefficients(block.p.T @ r[:, active])
            x[:, active] += block.p @ change
            r[:, active] -= block.q @ change
            iterations[active] += 1
            left = column_norms(r[:, active])
            problem.on_step(iterations.max(), (left / norms[active]).max())
            active = active[left > target[active]]
        return Answer(x, iterations)


class _Block:
    """Search directions P, conjugate to those before them, with their images Q = A P.

    Args:
        problem: a `Problem`.
        z: (p, k) preconditioned residuals.
        before: the `_Block` before this one, or None.

    Raises:
        NegativeCurvatureError: A is not positive definite on them.
        SolverError: a product with A is not finite.
    """

    def __init__(self, problem, z, before):
        if before is not None:
            z -= before.p @ before.coefficients(before.q.T @ z)
        # In the operator's precision, so that Q is the image of these very numbers.
        self.p = _basis(z).astype(problem.operator.dtype).astype(np.float64)
        self.q = problem.product(self.p)
        energy = self.p.T @ self.q
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

    def coefficients(self, overlaps):
        """(Pᵀ A P)⁻¹ times (k, m) overlaps."""
        return scipy.linalg.cho_solve(self._factor, overlaps)

    def _smallest(self, before):
        """The smallest Ritz value of A on the span of these directions and those before."""
        blocks = [self] if before is None else [before, self]
        p, q = (np.hstack([getattr(b, name) for b in blocks]) for name in "pq")
        basis, triangle = np.linalg.qr(p)
        images = scipy.linalg.solve_triangular(triangle, q.T, trans="T").T
        small = basis.T @ images
        return np.linalg.eigvalsh((small + small.T) / 2)[0]


def _basis(z):
    """An orthonormal basis of the columns' span, less what is dependent but for rounding."""
    z = z / column_norms(z).clip(1e-300)
    values, vectors = np.linalg.eigh(z.T @ z)
    kept = values > _DEPENDENT * values[-1]
    return z @ (vectors[:, kept] / np.sqrt(values[kept]))
