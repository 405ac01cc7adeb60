"""The dense solve."""

from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.solvers.base import Answer, Solver
from keras_influence.validate import check_number


class Direct(Solver):
    """Write the matrix out and factorise it in float64: exact, and indefinite matrices too.

    Costs p products once, p² memory, p³ time.

    Args:
        max_size: refuse more parameters than this.
    """

    tol = 1e-3
    advice = "The matrix is close to singular: raise `damping`."

    def __init__(self, max_size=10_000):
        check_number("max_size", max_size, low=1, integer=True)
        self.max_size = max_size

    def factorise(self, operator):
        """Cholesky factor of the dense matrix, or its LDLᵀ where it is indefinite."""
        if operator.size > self.max_size:
            raise ValueError(
                f"method='direct' would write out a {operator.size} x {operator.size} matrix "
                f"({operator.size**2 * 8 / 1e9:.1f} GB). Use method='cg', or "
                f"Direct(max_size={operator.size}) if that is what you want."
            )
        return DenseFactor.of(operator.to_dense())

    def _solve(self, problem):
        x = problem.factor.solve(problem.columns)
        problem.on_step(1, 0.0)
        return Answer(x, 1, positive_definite=problem.factor.kind == "cholesky")
