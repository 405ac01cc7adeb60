"""What `method="auto"` chooses, and why."""

import dataclasses
import math
from typing import NamedTuple

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


class _Way(NamedTuple):
    """A solver, what it takes in passes, and how many times as much it may be, where that is a guess."""

    passes: float
    solver: Solver
    guess: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Costs:
    """What each way to solve takes, in passes of the gradient over the data.

    The attributes are as of `Auto.choose`.
    """

    size: int
    n: int
    count: int
    damping: float
    work: float
    batches: float
    alone: float
    tracing: float
    workers: int

    @property
    def share(self) -> float:
        """Floating-point operations of a pass, of those who share it each."""
        return 6.0 * self.n * self.work / max(1, self.workers)

    @property
    def unit(self) -> float:
        """Floating-point operations in the time of a pass, with what is sent."""
        if not self.workers:
            return self.share
        return self.share + 6.0 * self.size * _SENT * math.log2(2 * self.workers)

    def of(self, products: float, together: float, operations: float = 0.0) -> float:
        """Of products, so many at a time, and of operations besides."""
        calls = products / max(1, min(together, _TOGETHER))
        fixed = (products * self.alone + calls * _CALL) * self.batches + operations
        return products * _EACH + calls * _FIRST + fixed / self.unit

    def iterating(self, first: float, power: float, growth: float) -> float:
        """Of conjugate gradients for all right-hand sides; see `_PRODUCTS`."""
        harder = (_USUAL / max(self.damping, _LEAST)) ** growth
        return self.of(first * harder * self.count**power, self.count)

    def dense(self, assembling: float | None) -> _Way:
        """To write the matrix out and to factorise it."""
        passes = self.of(self.size, _TOGETHER)
        if assembling is not None:
            passes = min(passes, assembling / self.unit + self.of(2, 2))
        # In float64, in which LAPACK is about as fast as passes are in float32.
        operations = self.size**3 / 3 + 2 * self.count * self.size**2
        return _Way(passes + operations / self.unit, Direct())

    def sketched(self) -> _Way:
        """To iterate behind a `Nystrom`."""
        making = self.of(_RANK_NYSTROM, _RANK_NYSTROM)
        passes = making + self.iterating(*_PRODUCTS_NYSTROM)
        return _Way(passes, CG(preconditioner="nystrom"), _GUESS)

    def by_contributions(self, found: Contributions) -> _Way:
        """To iterate behind a `Woodbury` of contributions of examples; once if they are all there are."""
        making = _EXAMPLE * found.rank / self.n
        making += (found.operations / _INNER + self.tracing) / self.unit
        if found.whole:
            return _Way(making + self.of(self.count, self.count), CG())
        return _Way(making + self.iterating(*_PRODUCTS), CG(), _GUESS)

    def two_level(self, bases: float) -> _Way:
        """To iterate behind a `TwoLevel`, whose bases take so many operations."""
        rank = min(_RANK, self.size // _MATTER)
        operations = bases + _COUPLING * rank**3 + self.tracing
        making = self.of(passes_to_make(rank, self.n), 1, operations)
        return _Way(making + self.iterating(*_PRODUCTS), CG(), _GUESS)


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
        costs = _Costs(size, n, count, damping, work or size, batches, alone, tracing, workers)
        about = f"auto: {size} parameters, {n} examples, {count} right-hand sides"
        about += f", {workers} workers" if workers else ""
        about += ", which take longer to send than to work" if costs.unit > 2 * costs.share else ""
        dense = costs.dense(assembling)
        if size <= _SMALL and dense.passes * costs.unit <= _SOON:
            return dense.solver, f"{about}: the dense matrix is small"
        ways = [costs.sketched()]
        if contributions is not None:
            ways.append(costs.by_contributions(contributions))
        elif bases is not None:
            ways.append(costs.two_level(bases))
        if size <= _LARGE:
            ways.append(dense)
        allowed = max(self.budget / costs.unit, _EPOCHS if self.budget else 0)
        return _cheapest(ways, allowed, about)


def _cheapest(ways: list[_Way], allowed: float, about: str) -> tuple[Solver, str]:
    """The solver that takes least within so many passes, else EK-FAC; with the reason."""
    affordable = [way for way in ways if way.passes <= allowed]
    best = min(affordable or ways, key=lambda way: way.passes * way.guess)
    time = f"the time of about {best.passes:.3g} passes over the data"
    if affordable:
        return best.solver, f"{about}: what costs least, {time}"
    return EKFAC(), (
        f"{about}: an exact solve would take {time}, more than the {allowed:.3g} of the budget. "
        "EK-FAC ranks examples much as the exact answer does, but a score may be off by tens of "
        "per cent: CG(preconditioner='auto') is exact"
    )
