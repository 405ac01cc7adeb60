"""SciPy's Newton-CG, as the original implementation of Koh and Liang used it."""

import numpy as np
import scipy.optimize

from keras_influence.errors import NegativeCurvatureError
from keras_influence.linalg.solvers.base import Answer, Solver
from keras_influence.validate import check_number


class NCG(Solver):
    """Minimise ½ xᵀA x - vᵀx with `scipy.optimize.fmin_ncg`, one right-hand side at a time.

    Args:
        avextol: SciPy's `avextol`: bounds the mean absolute update, which is not the
            residual. The residual is computed and reported all the same.
        max_iter: Newton steps at most.
        tol: relative residual above which a warning is given.
    """

    advice = "Lower `avextol`, raise `max_iter` or `damping`, or use method='cg'."

    def __init__(self, avextol=1e-8, max_iter=100, tol=1e-3):
        check_number("avextol", avextol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        check_number("tol", tol, strict=True)
        self.avextol = avextol
        self.max_iter = max_iter
        self.tol = tol

    def _solve(self, problem):
        v = problem.columns
        x, iterations = np.zeros_like(v), np.zeros(v.shape[1], int)
        for j in range(v.shape[1]):
            norm = np.linalg.norm(v[:, j])
            if norm > 0:
                start = problem.start[:, j] / norm
                solution, iterations[j] = self._minimise(problem, v[:, j] / norm, start)
                x[:, j] = norm * solution
        return Answer(x, iterations)

    def _minimise(self, problem, v, start):
        def product(direction):
            return problem.product(direction[:, None])[:, 0]

        def curved(_, direction):
            result = product(direction)
            curvature = direction @ result
            if curvature <= 0 and direction.any():
                raise NegativeCurvatureError(curvature / (direction @ direction), "NCG")
            return result

        steps = []
        x = scipy.optimize.fmin_ncg(
            lambda x: 0.5 * x @ product(x) - v @ x,
            start,
            fprime=lambda x: product(x) - v,
            fhess_p=curved,
            avextol=self.avextol,
            maxiter=self.max_iter,
            callback=lambda x: steps.append(problem.on_step(len(steps) + 1, np.nan)),
            disp=False,
        )
        return x, len(steps)
