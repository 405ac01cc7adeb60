"""MINRES, for symmetric systems that need not be positive definite (Paige and Saunders 1975)."""

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.sweeps import row_norms
from keras_influence.validate import check_number


class MINRES(Solver):
    """The minimum residual method: (H + λI)⁻¹ v for an indefinite Hessian, up to `tol`.

    Each iteration costs one pass over the data, shared by all right-hand sides that have
    not converged yet (SciPy's `minres` takes one at a time, and stops on an estimate
    relative to ‖A‖‖x‖; this one stops on ‖v - A x‖ / ‖v‖).

    Args:
        tol: relative residual ‖v - A x‖ / ‖v‖ to reach.
        max_iter: iterations at most.
    """

    advice = (
        "Raise `max_iter`, `tol` or `damping` (damping='auto' takes it from the scale of the "
        "curvature)."
    )

    def __init__(self, tol: float = 1e-5, max_iter: int = 1000) -> None:
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        self.tol: float = tol
        self.max_iter = max_iter

    def _solve(self, problem: Problem) -> Answer:
        x, norms = problem.start.copy(), row_norms(problem.rows)
        x[norms == 0] = 0
        iterations, definite = np.zeros(len(norms), int), True
        # In finite precision the recurrence loses sight of the residual: begin again from it.
        for _ in range(5):
            r = problem.remainder(x)
            active = np.flatnonzero(row_norms(r) > self.tol * norms)
            if not active.size or iterations.max() >= self.max_iter:
                break
            goal, used = 0.9 * self.tol * norms[active], int(iterations.max())
            correction, steps, positive = self._run(problem, r[active], goal, used)
            definite &= positive
            x[active] += correction
            iterations[active] += steps
        return Answer(x, iterations, definite)

    def _run(self, problem: Problem, b: Array, goal: Array, used: int) -> tuple[Array, Array, bool]:
        """The recurrence of Paige and Saunders from zero, for all rows of b at once.

        Returns:
            `(x, steps, positive)`; `positive` is False if some vᵀ A v was negative.
        """
        count, positive = len(b), True
        x, w, w_before = (np.zeros_like(b) for _ in range(3))
        before, current = np.zeros_like(b), b.copy()
        beta_before, beta = np.ones(count), row_norms(b)
        cos, sin = -np.ones(count), np.zeros(count)
        dbar, epsilon, left = np.zeros(count), np.zeros(count), beta.copy()
        steps, active = np.zeros(count, int), np.arange(count)
        while active.size and used + steps.max() < self.max_iter:
            a = active
            v = current[a] / beta[a, None]
            y = problem.product(v) - (beta[a] / beta_before[a])[:, None] * before[a]
            alpha = np.einsum("ij,ij->i", v, y)
            positive &= bool((alpha > 0).all())
            y -= (alpha / beta[a])[:, None] * current[a]
            before[a], current[a] = current[a], y
            beta_before[a], beta[a] = beta[a], row_norms(y)
            # One plane rotation brings the tridiagonal matrix to triangular form.
            delta = cos[a] * dbar[a] + sin[a] * alpha
            gamma_bar = sin[a] * dbar[a] - cos[a] * alpha
            epsilon_before, epsilon[a] = epsilon[a], sin[a] * beta[a]
            dbar[a] = -cos[a] * beta[a]
            gamma = np.hypot(gamma_bar, beta[a]).clip(1e-300)
            cos[a], sin[a] = gamma_bar / gamma, beta[a] / gamma
            direction = v - epsilon_before[:, None] * w_before[a] - delta[:, None] * w[a]
            direction /= gamma[:, None]
            w_before[a], w[a] = w[a], direction
            x[a] += (cos[a] * left[a])[:, None] * direction
            left[a] = sin[a] * left[a]
            steps[a] += 1
            problem.on_step(used + int(steps.max()), float(left.max()))
            active = a[(left[a] > goal[a]) & (beta[a] > 1e-14 * np.abs(alpha))]
        return x, steps, positive
