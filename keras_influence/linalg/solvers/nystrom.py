"""A randomised low-rank eigendecomposition, as a solver and as a preconditioner."""

import numpy as np
import scipy.linalg

from keras_influence.errors import NotFiniteError, SolverError
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.solvers.rounding import eps_of
from keras_influence.validate import check_number


def nystrom_factor(curvature: LinearOperator, damping: float, rank: int, seed: int) -> LowRank:
    """Randomised Nyström approximation (Frangella, Tropp and Udell 2023, algorithm 2.1).

    Args:
        curvature: H, positive semi-definite; one product with `rank` rows.
        damping: λ.
        rank: rows of the sketch.
        seed: of the sketch.

    Raises:
        SolverError: H is not positive semi-definite, or singular without damping.
    """
    rank = min(rank, curvature.size)
    rng = np.random.default_rng(seed)
    sketch = np.linalg.qr(rng.standard_normal((curvature.size, rank)))[0].T
    image = curvature.matmat(np.ascontiguousarray(sketch, curvature.dtype)).astype(np.float64)
    # A small shift keeps the Cholesky factor real; it is taken off again below.
    shift = max(eps_of(curvature.dtype) * np.linalg.norm(image), 1e-300)
    core = sketch @ image.T
    if not np.isfinite(core).all():
        raise NotFiniteError
    try:
        factor = scipy.linalg.cholesky((core + core.T) / 2 + shift * np.eye(rank))
    except np.linalg.LinAlgError as error:
        raise SolverError(
            "The Nyström approximation needs a positive semi-definite matrix: use "
            "curvature='gauss_newton'."
        ) from error
    half = scipy.linalg.solve_triangular(factor, image + shift * sketch, trans="T")
    _, singular, vectors = np.linalg.svd(half, full_matrices=False)
    values = np.maximum(singular**2 - shift, 0)
    if not damping and values[-1] <= eps_of(curvature.dtype) * values[0]:
        raise SolverError(
            "The Nyström approximation is singular without damping: use `damping` > 0."
        )
    return LowRank(vectors, values, damping)


class Nystrom(Solver):
    """Solve with a randomised low-rank approximation of the curvature plus the damping.

    Costs one product with `rank` rows, once, whatever the number of right-hand sides.
    Good where few eigenvalues stand out over λ; the residual says how good.

    Args:
        rank: size of the sketch.
        seed: of the sketch; the same seed gives the same answer.
        tol: relative residual above which a warning is given.
    """

    preconditions = True
    advice = "Raise `rank` or `damping`, or use method='cg' with CG(preconditioner=Nystrom())."

    def __init__(self, rank: int = 100, seed: int = 0, tol: float = 0.1) -> None:
        check_number("rank", rank, low=1, integer=True)
        check_number("seed", seed, integer=True)
        check_number("tol", tol, strict=True)
        self.rank = rank
        self.seed = seed
        self.tol = tol

    def factorise(self, curvature: LinearOperator, damping: float) -> LowRank:
        return nystrom_factor(curvature, damping, self.rank, self.seed)

    def _solve(self, problem: Problem) -> Answer:
        problem.on_step(1, np.nan)
        return Answer(problem.factor.solve(problem.rows), 1)
