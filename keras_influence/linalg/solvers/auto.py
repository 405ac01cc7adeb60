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
# What conjugate gradients with a `TwoLevel` preconditioner take to a residual of 1e-5: to make it,
# in gradient passes, and products for each right-hand side.
_MAKING, _PRODUCTS = 6, 20
# The same with a `Nystrom(50)`, where the layers are not known.
_MAKING_OTHERS, _PRODUCTS_OTHERS = 50, 50
# Gradient passes that are always affordable: a few epochs of training.
_EPOCHS = 25


class Auto:
    """Choose a solver by cost: exact as long as that is affordable, else a factorisation.

    The unit is a pass of the gradient over all n training examples, 6 n m floating-point
    operations where an example takes m multiplications forward; a product of the curvature with
    one vector costs about the same. Writing the matrix out takes p products, and p³ / 3
    operations to factorise; preconditioned conjugate gradients take about 20 for each right-hand
    side. The cheaper of the two is chosen if it is within `budget`, or within 25 passes, what
    some epochs of `fit` take; beyond it EK-FAC, whose cost does not depend on the number of
    right-hand sides.

    Args:
        budget: floating-point operations that an exact solve may take. The default of 1e12
            is about half a minute of two processor cores.
    """

    def __init__(self, budget: float = 1e12) -> None:
        check_number("budget", budget)
        self.budget = budget

    def choose(
        self, size: int, n: int, count: int, work: float | None = None, layers: bool = True
    ) -> tuple[Solver, str]:
        """A solver for some right-hand sides.

        Args:
            size: number of parameters.
            n: number of training examples.
            count: number of right-hand sides.
            work: multiplications that an example takes forward; as many as there are
                parameters if not given.
            layers: whether a `TwoLevel` preconditioner is worth it.

        Returns:
            `(solver, reason)`.
        """
        about = f"auto: {size} parameters, {n} examples, {count} right-hand sides"
        if size <= _SMALL:
            return Direct(), f"{about}: the dense matrix is small"
        unit = 6.0 * n * (work or size)
        allowed = max(self.budget / unit, _EPOCHS if self.budget else 0)
        direct = size + size**3 / 3 / unit
        if layers:
            iterative = float(_MAKING + _PRODUCTS * count)
        else:
            iterative = float(_MAKING_OTHERS + _PRODUCTS_OTHERS * count)
        if size <= _LARGE and direct <= min(iterative, allowed):
            return Direct(), f"{about}: {direct:.3g} products for the matrix, not {iterative:.3g}"
        if iterative <= allowed:
            return (
                CG(preconditioner="auto"),
                f"{about}: about {iterative:.3g} products, within the budget",
            )
        return EKFAC(), (
            f"{about}: an exact solve would take about {iterative:.3g} passes over the data, more "
            f"than the {allowed:.3g} of the budget. EK-FAC ranks examples much as the exact answer "
            "does, but a score may be off by tens of per cent: CG(preconditioner='auto') is exact"
        )
