"""What `method="auto"` chooses, and why."""

import dataclasses
import math

from keras_influence.linalg.operators.network import Contributions
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.cg import CG
from keras_influence.linalg.solvers.direct import Direct
from keras_influence.linalg.solvers.ekfac import EKFAC
from keras_influence.linalg.solvers.two_level import passes_to_make
from keras_influence.validate import check_number

# Beyond this many parameters the dense matrix takes more than 0.8 GB.
_LARGE = 10_000
# Products that conjugate gradients take to a residual of 1e-5, with a `TwoLevel` preconditioner and with a
# `Nystrom`: for one right-hand side at the usual damping; the power of their number that all of them take; and
# that of the damping's inverse.
_PRODUCTS, _PRODUCTS_NYSTROM = (12, 0.85, 0.2), (24, 0.75, 0.38)
_USUAL, _LEAST = 1e-2, 1e-6
# These are guesses: where many directions matter, as in networks with attention, there are more.
_GUESS = 1.5
_RANK, _RANK_NYSTROM = 1000, 50
# Seldom more than an eighth of all directions matter beside the damping. To couple R of them takes so many
# times R³ operations.
_MATTER, _COUPLING = 8, 16
# Passes of an example in the time that a contribution of it takes; and operations of their inner
# products, which are few large products of matrices, in the time of one of a pass.
_EXAMPLE, _INNER = 3, 4
# Floating-point operations in the time that a call of a kernel takes at least, some milliseconds.
_CALL = 3e8
# Vectors that share a call, and passes that a product takes: of each, and of each call.
_TOGETHER, _EACH, _FIRST = 64, 0.6, 1.4
# Of few parameters, operations that are soon done, half a second: nothing but the exact way need be weighed.
_SMALL, _SOON = 1000, 2e10
# Examples with which a worker of a cluster is busy for as long as vectors take to be sent and sums to
# be fetched, for each doubling of the workers: what `benchmarks/scaling.py` prints, rounded.
_SENT = 400
# Gradient passes that are always affordable: a few epochs of training.
_EPOCHS = 25


@dataclasses.dataclass(frozen=True)
class _Costs:
    """What things cost, in passes of the gradient over the data.

    Attributes:
        unit: floating-point operations in the time of a pass.
        batches, alone, damping: as of `Auto.choose`.
    """

    unit: float
    batches: float
    alone: float
    damping: float

    def of(self, products: float, together: float, operations: float = 0.0) -> float:
        """Of products, so many at a time, and of operations besides."""
        calls = products / max(1, min(together, _TOGETHER))
        fixed = (products * self.alone + calls * _CALL) * self.batches + operations
        return products * _EACH + calls * _FIRST + fixed / self.unit

    def iterating(self, count: int, first: float, power: float, growth: float) -> float:
        """Of conjugate gradients for so many right-hand sides; see `_PRODUCTS`."""
        harder = (_USUAL / max(self.damping, _LEAST)) ** growth
        return self.of(first * harder * count**power, count)


class Auto:
    """Choose a solver by cost: exact as long as that is affordable, else a factorisation.

    The unit is a pass of the gradient over all n training examples, 6 n m floating-point
    operations where an example takes m multiplications forward; a product of the curvature with
    one vector costs about two of them, with many together half of that for each, and some
    milliseconds for each batch. Writing the matrix out takes p products, or for a dense layer
    an eighth of their operations where it is put together from contributions of examples, and
    p³ / 3 to factorise; conjugate gradients take some for each right-hand side, fewer where a
    `TwoLevel` preconditions them, which costs more to make than a `Nystrom` does, and one where a
    `Woodbury` of all contributions of examples does; for these more has to be traced, which of a
    small network takes longer than all the rest. Of few parameters the matrix is written out if that is soon done, for no other answer is as exact. Else the cheapest
    of these is chosen if it is within `budget`, or within 25 passes, what some epochs of `fit`
    take; beyond it EK-FAC, whose cost does not depend on the number of right-hand sides.

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
        damping: float = _USUAL,
        work: float | None = None,
        contributions: Contributions | None = None,
        bases: float | None = 0.0,
        batches: float = 1,
        alone: float = 0.0,
        tracing: float = 0.0,
        assembling: float | None = None,
        workers: int = 0,
    ) -> tuple[Solver, str]:
        """A solver for some right-hand sides.

        Args:
            size: number of parameters.
            n: number of training examples.
            count: number of right-hand sides.
            damping: λ.
            work: multiplications that an example takes forward; as many as there are
                parameters if not given.
            contributions: how many of single examples are worth their cost; None where none are.
            bases: operations that EK-FAC's bases take; None where `TwoLevel` is not worth it.
            batches: of the training examples.
            alone: operations in the time that a product takes at least, where vectors do not go
                through a batch together.
            tracing: operations in the time that it takes to trace what layers are seen by.
            assembling: operations in the time that it takes to write the matrix out by contributions of
                examples; None where products are cheaper.
            workers: of a cluster, that share the examples; 0 if there is none. A pass then takes
                the time of their shares, and that of what is sent, which grows with the
                parameters and not with the examples.

        Returns:
            `(solver, reason)`.
        """
        about = f"auto: {size} parameters, {n} examples, {count} right-hand sides"
        unit = share = 6.0 * n * (work or size) / max(1, workers)
        if workers:
            unit += 6.0 * size * _SENT * math.log2(2 * workers)
            about += f", {workers} workers"
            about += ", which take longer to send than to work" if unit > 2 * share else ""
        allowed = max(self.budget / unit, _EPOCHS if self.budget else 0)
        costs = _Costs(unit, batches, alone, damping)
        dense = costs.of(size, _TOGETHER)
        if assembling is not None:
            dense = min(dense, assembling / unit + costs.of(2, 2))
        # In float64, in which LAPACK is about as fast as passes are in float32.
        dense += (size**3 / 3 + 2 * count * size**2) / unit
        if size <= _SMALL and dense * unit <= _SOON:
            return Direct(), f"{about}: the dense matrix is small"
        sketch = costs.of(_RANK_NYSTROM, _RANK_NYSTROM)
        # What each way takes, in passes; and how many times as much it may be, where that is a guess.
        ways: list[tuple[float, float, Solver]] = [
            (
                sketch + costs.iterating(count, *_PRODUCTS_NYSTROM),
                _GUESS,
                CG(preconditioner="nystrom"),
            )
        ]
        if contributions is not None:
            making = _EXAMPLE * contributions.rank / n
            making += (contributions.operations / _INNER + tracing) / unit
            if contributions.whole:
                ways.append((making + costs.of(count, count), 1, CG()))
            else:
                ways.append((making + costs.iterating(count, *_PRODUCTS), _GUESS, CG()))
        elif bases is not None:
            rank = min(_RANK, size // _MATTER)
            making = costs.of(passes_to_make(rank, n), 1, bases + _COUPLING * rank**3 + tracing)
            ways.append((making + costs.iterating(count, *_PRODUCTS), _GUESS, CG()))
        if size <= _LARGE:
            ways.append((dense, 1, Direct()))
        affordable = [way for way in ways if way[0] <= allowed]
        passes, _, solver = min(affordable or ways, key=lambda way: way[0] * way[1])
        if affordable:
            return (
                solver,
                f"{about}: what costs least, the time of about {passes:.3g} passes over the data",
            )
        return EKFAC(), (
            f"{about}: an exact solve would take the time of about {passes:.3g} passes over the data, more "
            f"than the {allowed:.3g} of the budget. EK-FAC ranks examples much as the exact answer "
            "does, but a score may be off by tens of per cent: CG(preconditioner='auto') is exact"
        )
