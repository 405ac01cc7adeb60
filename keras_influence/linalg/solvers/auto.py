"""What `method="auto"` chooses, and why."""

from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.cg import CG
from keras_influence.linalg.solvers.direct import Direct
from keras_influence.linalg.solvers.ekfac import EKFAC
from keras_influence.validate import check_number

# Below this many parameters the dense matrix is cheap whatever is asked.
_SMALL = 1000
# Beyond this many the dense matrix takes more than 0.8 GB.
_LARGE = 10_000
# Passes that preconditioned CG took in benchmarks/preconditioner.py, and its sketch's rows.
_PASSES = 50
_RANK = 50


class Auto:
    """Choose a solver by cost: exact as long as that is affordable, else a factorisation.

    The unit is a product of the curvature of all n training examples with one vector, about
    6 n p floating-point operations. Writing the matrix out takes p products, and p³ / 3
    operations to factorise; conjugate gradients take about 50 for each right-hand side, fewer
    where many share their directions, and 50 once, for the preconditioner. The cheaper of the
    two is chosen if it is within `budget`; beyond it EK-FAC, whose cost does not depend on the
    number of right-hand sides.

    Args:
        budget: floating-point operations that an exact solve may take. The default of 1e14
            is about half an hour of two processor cores.
    """

    def __init__(self, budget: float = 1e14) -> None:
        check_number("budget", budget)
        self.budget = budget

    def choose(self, size: int, n: int, count: int) -> tuple[Solver, str]:
        """A solver for `count` right-hand sides of `size`, with n examples, and the reason.

        Returns:
            `(solver, reason)`.
        """
        about = f"auto: {size} parameters, {n} examples, {count} right-hand sides"
        if size <= _SMALL:
            return Direct(), f"{about}: the dense matrix is small"
        direct = size + size**2 / (18 * n)
        iterative = _RANK + _PASSES * count
        work = 6.0 * n * size
        if size <= _LARGE and direct <= iterative and direct * work <= self.budget:
            return Direct(), f"{about}: {direct:.3g} products for the matrix, not {iterative:.3g}"
        if iterative * work <= self.budget:
            return (
                CG(preconditioner="auto"),
                f"{about}: about {iterative:.3g} products, within the budget",
            )
        return EKFAC(), (
            f"{about}: an exact solve would take about {iterative * work:.1g} operations, more "
            f"than the budget of {self.budget:.1g}"
        )
