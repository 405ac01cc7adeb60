"""What `method="auto"` chooses, and why."""

import math

from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.cg import CG
from keras_influence.linalg.solvers.direct import Direct
from keras_influence.linalg.solvers.ekfac import EKFAC
from keras_influence.linalg.solvers.two_level import passes_to_make
from keras_influence.validate import check_number

# Below this many parameters the dense matrix is cheap whatever is asked.
_SMALL = 1000
# Beyond this many the dense matrix takes more than 0.8 GB.
_LARGE = 10_000
# Products for each right-hand side that conjugate gradients take to a residual of 1e-5, with a
# `TwoLevel` preconditioner; and with a `Nystrom(50)`, where the layers are not known.
_PRODUCTS, _PRODUCTS_OTHERS = 20, 50
_RANK, _RANK_OTHERS = 1000, 50
# Floating-point operations in the time that a call of a kernel takes at least, some milliseconds.
_CALL = 1e8
# Vectors that share a call, and what is soon enough for no other way to be weighed: a second or two.
_TOGETHER, _SOON = 64, 5e10
# Examples with which a worker of a cluster is busy for as long as vectors take to be sent and sums to
# be fetched, for each doubling of the workers: what `benchmarks/scaling.py` prints, rounded.
_SENT = 400
# Gradient passes that are always affordable: a few epochs of training.
_EPOCHS = 25


class Auto:
    """Choose a solver by cost: exact as long as that is affordable, else a factorisation.

    The unit is a pass of the gradient over all n training examples, 6 n m floating-point
    operations where an example takes m multiplications forward; a product of the curvature with
    one vector costs about the same, and some milliseconds for each batch. Writing the matrix out
    takes p products, and p³ / 3 operations to factorise; preconditioned conjugate gradients take
    about 20 for each right-hand side. The cheaper of the two is chosen if it is within `budget`,
    or within 25 passes, what some epochs of `fit` take; beyond it EK-FAC, whose cost does not
    depend on the number of right-hand sides.

    Args:
        budget: floating-point operations that an exact solve may take. The default of 1e12
            is about half a minute of two processor cores.
    """

    def __init__(self, budget: float = 1e12) -> None:
        check_number("budget", budget)
        self.budget = budget

    def choose(
        self,
        size: int,
        n: int,
        count: int,
        *,
        work: float | None = None,
        layers: bool = True,
        batches: float = 1,
        alone: float = 0.0,
        workers: int = 0,
    ) -> tuple[Solver, str]:
        """A solver for some right-hand sides.

        Args:
            size: number of parameters.
            n: number of training examples.
            count: number of right-hand sides.
            work: multiplications that an example takes forward; as many as there are
                parameters if not given.
            layers: whether a `TwoLevel` preconditioner is worth it.
            batches: of the training examples.
            alone: operations in the time that a product takes at least, where vectors do not go
                through a batch together.
            workers: of a cluster, that share the examples; 0 if there is none. A pass then takes
                the time of their shares, and that of what is sent, which grows with the
                parameters and not with the examples.

        Returns:
            `(solver, reason)`.
        """
        about = f"auto: {size} parameters, {n} examples, {count} right-hand sides"
        if size <= _SMALL and size * batches * alone <= _SOON:
            return Direct(), f"{about}: the dense matrix is small"
        unit = share = 6.0 * n * (work or size) / max(1, workers)
        if workers:
            unit += 6.0 * size * _SENT * math.log2(2 * workers)
            about += f", {workers} workers"
            about += ", which take longer to send than to work" if unit > 2 * share else ""
        allowed = max(self.budget / unit, _EPOCHS if self.budget else 0)

        def cost(products: float, calls: float) -> float:
            """Of products in passes, with that of the calls of kernels."""
            return products + (products * alone + calls * _CALL) * batches / unit

        if layers:
            making, each = passes_to_make(min(_RANK, size), n), _PRODUCTS
            iterative = cost(making, making)
        else:
            making, each = _RANK_OTHERS, _PRODUCTS_OTHERS
            iterative = cost(making, 1)
        iterative += cost(each * count, each * max(1, count / _TOGETHER))
        direct = cost(size, size / _TOGETHER) + size**3 / 3 / unit
        products = f"{making + each * count:.3g}"
        if size <= _LARGE and direct <= min(iterative, allowed):
            return Direct(), f"{about}: {size} products for the matrix, not {products} one by one"
        if iterative <= allowed:
            return (
                CG(preconditioner="auto"),
                f"{about}: about {products} products, within the budget",
            )
        return EKFAC(), (
            f"{about}: an exact solve would take about {products} passes over the data, more "
            f"than the {allowed:.3g} of the budget. EK-FAC ranks examples much as the exact answer "
            "does, but a score may be off by tens of per cent: CG(preconditioner='auto') is exact"
        )
