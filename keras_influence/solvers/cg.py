"""Conjugate gradients (Hestenes and Stiefel 1952)."""

import numpy as np

from keras_influence.errors import NegativeCurvatureError
from keras_influence.solvers.base import Solver, check_number


class CG(Solver):
    """Conjugate gradients, for positive definite systems; exact up to `tol`.

    Each iteration costs one pass over the data, shared by all right-hand sides
    that have not converged yet.

    Args:
        tol: relative residual ‖v - A x‖ / ‖v‖ to reach.
        max_iter: iterations at most.
    """

    advice = "Raise `max_iter`, `damping` or `tol`."

    def __init__(self, tol=1e-5, max_iter=1000):
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        self.tol = tol
        self.max_iter = max_iter

    def _solve(self, operator, columns, on_step, factor):
        v = np.asarray(columns, np.float64)
        x, r, p = np.zeros_like(v), v.copy(), v.copy()
        rho = np.einsum("ij,ij->j", r, r)
        norms = np.sqrt(rho)
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        iterations = np.zeros(v.shape[1], int)
        active = np.flatnonzero(norms > 0)
        steps = _Lanczos(v.shape[1])
        while active.size and iterations.max() < self.max_iter:
            q = operator.matmat(p[:, active].astype(operator.dtype)).astype(np.float64)
            kappa = np.einsum("ij,ij->j", p[:, active], q)
            alpha = rho[active] / kappa
            if (kappa <= 0).any():
                worst = [steps.smallest(c, a) for c, a in zip(active, alpha) if not a > 0]
                raise NegativeCurvatureError(min(worst), "CG")
            x[:, active] += alpha * p[:, active]
            r[:, active] -= alpha * q
            previous, rho[active] = rho[active], np.einsum("ij,ij->j", r[:, active], r[:, active])
            beta = rho[active] / previous
            steps.add(active, alpha, beta)
            p[:, active] = r[:, active] + beta * p[:, active]
            iterations[active] += 1
            on_step(iterations.max(), (np.sqrt(rho[active]) / norms[active]).max())
            active = active[np.sqrt(rho[active]) > target[active]]
        return x, iterations, True


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
