"""SciPy's Newton-CG, as the original implementation of Koh and Liang used it."""

import numpy as np
import scipy.optimize

from keras_influence.errors import NegativeCurvatureError
from keras_influence.linalg.arrays import Array
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
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

    def __init__(self, avextol: float = 1e-8, max_iter: int = 100, tol: float = 1e-3) -> None:
        check_number("avextol", avextol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        check_number("tol", tol, strict=True)
        self.avextol = avextol
        self.max_iter = max_iter
        self.tol = tol

    def _solve(self, problem: Problem) -> Answer:
        x, iterations = np.zeros_like(problem.rows), np.zeros(len(problem.rows), int)
        for i, v in enumerate(problem.rows):
            norm = np.linalg.norm(v)
            if norm > 0:
                start = problem.start[i] / norm
                solution, iterations[i] = self._minimise(problem, v / norm, start)
                x[i] = norm * solution
        return Answer(x, iterations)

    def _minimise(self, problem: Problem, v: Array, start: Array) -> tuple[Array, int]:
        def product(direction: Array) -> Array:
            return problem.product(direction[None])[0]

        def curved(_: Array, direction: Array) -> Array:
            result = product(direction)
            curvature = direction @ result
            if curvature <= 0 and direction.any():
                raise NegativeCurvatureError(curvature / (direction @ direction), "NCG")
            return result

        steps = 0

        def count(_: Array) -> None:
            nonlocal steps
            steps += 1
            problem.on_step(steps, np.nan)

        x = scipy.optimize.fmin_ncg(
            lambda x: 0.5 * x @ product(x) - v @ x,
            start,
            fprime=lambda x: product(x) - v,
            fhess_p=curved,
            avextol=self.avextol,
            maxiter=self.max_iter,
            callback=count,
            disp=False,
        )
        return x, steps
