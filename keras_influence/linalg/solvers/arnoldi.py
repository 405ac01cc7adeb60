"""The leading eigenvectors of the curvature as its inverse (Schioppa et al. 2022)."""

from typing import Literal

import numpy as np

from keras_influence.errors import SolverError
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.solvers.rounding import rounding_of
from keras_influence.linalg.spectrum import eigenpairs
from keras_influence.validate import check_number


class Arnoldi(Solver):
    """Invert the curvature on its leading eigenvectors, those of largest magnitude.

    Schioppa et al. (2022, §3) run Arnoldi's method from a random vector; for a symmetric
    matrix that is Lanczos's, and SciPy's `eigsh` (ARPACK, restarted) runs it here until the
    eigenvectors are accurate. Indefinite matrices are taken too. Made once, in about two
    to three passes over the data for each eigenvector; each right-hand side is then free.

    Args:
        rank: eigenvectors to keep.
        complement: what to do outside of them. "damping": there the matrix counts as λI, so
            that it is the system of every other solver, exact for a curvature of that rank.
            "drop": zero, as in the paper.
        seed: of the start vector.
        eigen_tol: relative accuracy of the eigenvalues.
        tol: relative residual above which to warn; None for an approximation that is not judged.
    """

    advice = "Raise `rank` or `damping`, or use method='cg'."

    def __init__(
        self,
        rank: int = 50,
        complement: Literal["damping", "drop"] = "damping",
        seed: int = 0,
        eigen_tol: float = 1e-3,
        tol: float | None = None,
    ) -> None:
        check_number("rank", rank, low=1, integer=True)
        if complement not in ("damping", "drop"):
            raise ValueError(
                f"`complement` should be 'damping' or 'drop'. Received: complement={complement!r}"
            )
        check_number("seed", seed, integer=True)
        check_number("eigen_tol", eigen_tol, strict=True)
        check_number("tol", tol, strict=True, optional=True)
        self.rank = rank
        self.complement = complement
        self.seed = seed
        self.eigen_tol = eigen_tol
        self.tol = tol

    def factorise(self, curvature: LinearOperator, damping: float) -> LowRank:
        values, vectors = eigenpairs(curvature, self.rank, "LM", self.eigen_tol, self.seed)
        if not len(values):
            raise SolverError(
                f"{self} found no eigenvector. Raise `eigen_tol` or lower `rank`, or use "
                "method='nystrom'."
            )
        order = np.argsort(-np.abs(values), kind="stable")
        return LowRank(vectors[order], values[order], damping)

    def _solve(self, problem: Problem) -> Answer:
        factor = problem.factor
        invert = factor.solve if self.complement == "damping" else factor.project
        problem.on_step(1, np.nan)
        smallest = float((factor.eigenvalues + factor.damping).min())
        least = rounding_of(problem.curvature.dtype) * float(np.abs(factor.eigenvalues).max())
        return Answer(
            invert(problem.rows),
            1,
            positive_definite=smallest > -least,
            details={"rank": len(factor.eigenvalues), "smallest_kept": smallest},
        )
