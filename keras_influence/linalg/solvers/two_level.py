"""EK-FAC, corrected by the exact curvature in the directions where it is largest."""

import numpy as np
import scipy.linalg

from keras_influence.errors import SolverError
from keras_influence.linalg.arrays import taking_turns
from keras_influence.linalg.factors.blocks import Block, Channels
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.two_level import CoupledFactor, TwoLevelFactor
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.layered import layered
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.validate import check_number

# Pseudo-gradients that the coupling is estimated from, for each of its directions.
_DRAWS = 8
# Passes over the data that these may take: fewer than the products they save, where examples are few.
_PASSES = 32
# Directions whose eigenvalue is a smaller part of the damping are as good as not there; and where
# that of none outside is larger than so much of it, one number does for all of these.
_NEGLIGIBLE, _EVEN = 0.1, 0.3


class TwoLevel(Solver):
    """`EKFAC` whose leading directions, of all layers together, are coupled by the curvature itself.

    EK-FAC's bases give cheap coordinates. In those with the largest eigenvalues the
    Gauss-Newton matrix is estimated whole, between layers too, and factorised; the others keep
    EK-FAC's diagonal. It takes no product with the curvature. As a preconditioner of `CG` it is
    what "auto" stands for where examples are many; by itself it is an approximation, closer than `EKFAC`.

    Args:
        rank: directions that are coupled, at most.
        pseudo_gradients: for each example, as in `EKFAC`.
        seed: of these.
    """

    tol = None
    preconditions = True
    approximates = "gauss_newton"
    advice = "Raise `damping` or `rank`, or use method='cg'."

    def __init__(self, rank: int = 1000, pseudo_gradients: int = 1, seed: int = 0) -> None:
        check_number("rank", rank, low=1, integer=True)
        check_number("pseudo_gradients", pseudo_gradients, low=1, integer=True)
        check_number("seed", seed, integer=True)
        self.rank = rank
        self.pseudo_gradients = pseudo_gradients
        self.seed = seed

    def factorise(
        self, curvature: LinearOperator, damping: float
    ) -> TwoLevelFactor | CoupledFactor:
        """The factor of a curvature whose layers are known.

        Raises:
            ValueError: they are not.
            SolverError: it is singular and there is no damping.
        """
        network = layered(curvature)
        fine = Kronecker(network.kronecker(self.pseudo_gradients, self.seed), damping)
        curvature.spend(2 * self.pseudo_gradients)
        if damping == 0 and fine.singular:
            raise SolverError("TwoLevel met a singular block. Set `damping` to a positive number.")
        chosen = self._chosen(fine, _most(network.n))
        matrix = np.zeros((0, 0))
        if chosen.size:
            matrix = network.coupling(fine.blocks, chosen, _DRAWS * len(chosen), self.seed)
        matrix.flat[:: len(chosen) + 1] += damping
        try:
            with taking_turns():
                matrix = scipy.linalg.cholesky(matrix, lower=True)
        except np.linalg.LinAlgError as error:
            raise SolverError(
                "TwoLevel needs a positive definite matrix. Set `damping` to a positive number."
            ) from error
        largest, mean = fine.without(chosen)
        if not chosen.size or largest > _EVEN * damping:
            return TwoLevelFactor(fine, chosen, matrix).astype(curvature.dtype)
        level = damping + mean
        return CoupledFactor(*fine.narrowed(chosen), matrix, level).astype(curvature.dtype)

    def _chosen(self, fine: Kronecker, most: int) -> np.ndarray:
        """The largest coordinates of blocks that know their examples, sorted."""
        parts = [_comparable(block) for block in fine.blocks]
        values = np.concatenate(parts)
        count = min(self.rank, most, int((values > _NEGLIGIBLE * fine.damping).sum()))
        return np.sort(np.argpartition(-values, count - 1)[:count]) if count else np.zeros(0, int)

    def _solve(self, problem: Problem) -> Answer:
        problem.on_step(1, np.nan)
        x = problem.factor.precondition(problem.rows)
        return Answer(x, 1, details={"coupled_directions": len(problem.factor.coarse)})


def passes_to_make(rank: int, n: int) -> float:
    """Passes over n examples that it takes to make a factor that couples `rank` directions."""
    return 2 + _DRAWS * min(rank, _most(n)) / n


def _most(n: int) -> int:
    """Directions that may be coupled, given n examples."""
    return max(1, _PASSES * n // _DRAWS)


def _comparable(block: Block | Channels) -> np.ndarray:
    """Eigenvalues of a block, none where it does not know its examples."""
    values = block.eigenvalues.ravel()
    return values if block.by_example else np.full(values.shape, -np.inf)
