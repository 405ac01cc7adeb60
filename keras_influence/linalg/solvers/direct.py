"""The dense solve."""

from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.damped import Damped
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.solvers.rounding import rounding_of
from keras_influence.validate import check_number


class Direct(Solver):
    """Write the matrix out and factorise it in float64: exact, and indefinite matrices too.

    Costs p² memory, p³ time, and once p products; or, where that is less, the contributions of all examples
    to a Gauss-Newton matrix, of which a layer's are few large products of matrices. Many right-hand sides
    then cost little more than one; their residuals are bounded together, by products with 4 sums of each
    128 of them.

    Args:
        max_size: refuse more parameters than this.
    """

    tol, by_bounds = 1e-3, True
    advice = (
        "The matrix is close to singular: raise `damping`, or scale features and targets that are large "
        "(its largest eigenvalue leaves no digits for the damping)."
    )

    def __init__(self, max_size: int = 10_000) -> None:
        check_number("max_size", max_size, low=1, integer=True)
        self.max_size = max_size

    def factorise(self, curvature: LinearOperator, damping: float) -> DenseFactor:
        """Cholesky factor of the dense matrix, or its LDLᵀ where it is indefinite."""
        size = curvature.size
        if size > self.max_size:
            raise ValueError(
                f"method='direct' would write out a {size} x {size} matrix "
                f"({size**2 * 8 / 1e9:.1f} GB). Use method='cg', or "
                f"Direct(max_size={size}) if that is what you want."
            )
        matrix, _ = Damped(curvature, damping).written_out()
        return DenseFactor.of(matrix, rounding_of(curvature.dtype))

    def _solve(self, problem: Problem) -> Answer:
        x = problem.factor.solve(problem.rows)
        problem.on_step(1, 0.0)
        return Answer(x, 1, positive_definite=problem.factor.kind == "cholesky")
