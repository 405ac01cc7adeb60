"""The strongest contributions of single examples, inverted by Woodbury's identity."""

import numpy as np

from keras_influence.errors import SolverError
from keras_influence.linalg.factors.contributions import ContributionsFactor
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.layered import layered
from keras_influence.linalg.operators.network import BYTES
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.validate import check_number

# The residual of an answer from all contributions, beyond which rounding has spoilt it.
_EXACT = 1e-3


class Woodbury(Solver):
    """The Gauss-Newton matrix of the strongest contributions of single examples, plus the damping.

    Each example adds a few matrices of rank one, as many as the model has outputs: g gᵀ with g
    its gradient along one of them. The `rank` strongest of all are taken, and (Σ g gᵀ + λI)⁻¹ is had from a matrix
    of rank × rank. Where these are all there are the answer is exact, for any number of
    parameters, but for rounding: a residual above 1e-3 is warned of, as where λ is a millionth of the
    largest eigenvalue. Else it is an approximation, and a
    preconditioner of `CG` that knows nothing of layers being close to Kronecker products, and needs
    no product with the curvature.

    All parameters have to be in layers whose example gradients are known.

    Args:
        rank: contributions at most; fewer where they would take more than half a gigabyte.
    """

    tol = None
    preconditions = True
    approximates = "gauss_newton"
    advice = "Raise `damping` or `rank`, or use method='cg'."

    def __init__(self, rank: int = 4000) -> None:
        check_number("rank", rank, low=1, integer=True)
        self.rank = rank

    def factorise(self, curvature: LinearOperator, damping: float) -> ContributionsFactor:
        """The factor of a curvature whose layers are known.

        Raises:
            ValueError: they are not.
            SolverError: there is no damping, or the contributions are not known.
        """
        network = layered(curvature)
        if not damping > 0:
            raise SolverError("Woodbury needs a damping. Set `damping` to a positive number.")
        parts = network.contributions(self.rank, BYTES)
        if not parts:
            raise SolverError(
                "Woodbury found no contributions of single examples: the loss is not curved in the "
                "outputs, or some parameters are in no layer whose example gradients are known. "
                "Use another method, such as 'cg'."
            )
        curvature.spend(len(parts[0]) / network.n)
        worth = network.contributions_worth_it()
        whole = worth is not None and worth.whole and self.rank >= worth.rank
        # One more would have been taken, and would have had room.
        nbytes = sum(part.nbytes for part in parts) * (1 + 1 / len(parts[0]))
        whole = whole or (len(parts[0]) < self.rank and nbytes <= BYTES)
        about = damping, network.regulariser(), whole
        return ContributionsFactor.of(parts, *about).astype(curvature.dtype)

    def _solve(self, problem: Problem) -> Answer:
        problem.on_step(1, np.nan)
        factor = problem.factor
        x = (factor.refined if factor.whole else factor.precondition)(problem.rows)
        tol = _EXACT if factor.whole else None
        return Answer(x, 1, details={"contributions": len(factor.cholesky)}, tol=tol)
