"""Conjugate gradients (Hestenes and Stiefel 1952), preconditioned, for many right-hand sides."""

import numpy as np

from keras_influence.errors import NegativeCurvatureError
from keras_influence.solvers import preconditioners
from keras_influence.solvers.base import Answer, Solver, check_number, column_norms


class CG(Solver):
    """Conjugate gradients, for positive definite systems; exact up to `tol`.

    Each iteration costs one pass over the data, shared by all right-hand sides
    that have not converged yet.

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
        z = precondition(r)
        p = z.copy()
        rho = _dots(r, z)
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        iterations = np.zeros(len(norms), int)
        active = np.flatnonzero(column_norms(r) > target)
        steps = _Lanczos(len(norms))
        while active.size and iterations.max() < self.max_iter:
            q = problem.product(p[:, active])
            alpha = rho[active] / _dots(p[:, active], q)
            if not (alpha > 0).all():
                self._refuse(problem, steps, p, q, active, alpha)
            x[:, active] += alpha * p[:, active]
            r[:, active] -= alpha * q
            z = precondition(r[:, active])
            previous, rho[active] = rho[active], _dots(r[:, active], z)
            beta = rho[active] / previous
            steps.add(active, alpha, beta)
            p[:, active] = z + beta * p[:, active]
            iterations[active] += 1
            left = column_norms(r[:, active])
            problem.on_step(iterations.max(), (left / norms[active]).max())
            active = active[left > target[active]]
        return Answer(x, iterations)

    def _refuse(self, problem, steps, p, q, active, alpha):
        bad = [i for i, a in enumerate(alpha) if not a > 0]
        if problem.factor is None:
            values = [steps.smallest(active[i], alpha[i]) for i in bad]
        else:  # The Lanczos matrix is that of the preconditioned operator: use Rayleigh quotients.
            directions = p[:, active[bad]]
            values = _dots(directions, q[:, bad]) / _dots(directions, directions)
        raise NegativeCurvatureError(min(values), "CG")


def _dots(a, b):
    return np.einsum("ij,ij->j", a, b)


class _Lanczos:
    """CG's step lengths, which are the entries of Lanczos's tridiagonal matrix."""

    def __init__(self, count):
        self._steps = [[] for _ in range(count)]

    def add(self, active, alpha, beta):
        for column, a, b in zip(active, alpha, beta):
            self._steps[column].append((a, b))

    def smallest(self, column, last_alpha):
        """The smallest Ritz value of A on the Krylov space of one column."""
        alpha = np.array([a for a, _ in self._steps[column]] + [last_alpha])
        beta = np.array([b for _, b in self._steps[column]])
        diagonal = 1 / alpha
        diagonal[1:] += beta / alpha[:-1]
        off = np.sqrt(beta) / alpha[:-1]
        return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))[0]
