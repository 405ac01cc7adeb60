"""How long to go on with a factor, or with none, before a better one is made, which may cost much."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.damped import Damped
from keras_influence.linalg.solvers.preconditioners import Preconditioner, by_layers

# What a product costs besides its vectors, in vectors.
_PRODUCT = 2
# Iterations before their speed says much.
_EARLIEST = 3
# Parameters up to which the matrix is written out where all else is slow: it takes 0.2 GB; and what its
# factor takes for each, in vectors.
_DENSE, _FACTORISED = 5000, 0.5

# Makes a factor, or finds that there is none.
Make = Callable[[], Any]


class Patience:
    """Whether the iterations that are left seem to cost more than a better factor.

    The speed so far is taken for the speed to come; conjugate gradients only get faster. A hard
    system is given up after a few iterations, which cost less than half of the factor.

    Args:
        make: makes the factor.
        vectors: as many as are multiplied in the time that this takes.
        targets: residuals to reach, of all right-hand sides.

    Attributes:
        make: as given.
    """

    def __init__(self, make: Make, vectors: float, targets: Array) -> None:
        self.make = make
        self._cost, self._targets = vectors + _PRODUCT, targets
        self._start: float | None = None
        self._steps = -1

    def is_over(self, left: Array, active: Array) -> bool:
        """To be asked before each iteration.

        Args:
            left: norms of the residuals that are left.
            active: which right-hand sides these are of.
        """
        missing = float(np.log(left / self._targets[active]).max())
        self._start = missing if self._start is None else self._start
        self._steps += 1
        iteration = len(active) + _PRODUCT
        if self._steps < min(_EARLIEST, self._cost / 2 // iteration):
            return False
        gained = (self._start - missing) / max(1, self._steps)
        return bool(missing * iteration > gained * self._cost)


class FirstStep:
    """One iteration, which shows most systems that are not definite for what they are.

    Args:
        make: makes the factor.
    """

    def __init__(self, make: Make) -> None:
        self.make = make
        self._steps = -1

    def is_over(self, left: Array, active: Array) -> bool:
        """As of `Patience`."""
        self._steps += 1
        return self._steps > 0


def waits(preconditioner: Preconditioner, curvature: LinearOperator) -> bool:
    """Whether the preconditioner is made only if it turns out to be needed.

    So is a sketch that nobody has asked for by itself, and what is made of layers for a curvature
    that is doubtful.
    """
    return _is_sketch(preconditioner, curvature) or preconditioner == "auto" and curvature.doubtful


def factors_to_come(
    preconditioner: Preconditioner,
    curvature: LinearOperator,
    damping: float,
    targets: Array,
    prepare: Make | None,
    rank: int,
) -> list[Patience | FirstStep]:
    """What says how long to wait for each factor that may yet be made, in their order.

    After all others comes the matrix itself, written out, where it is small and no
    preconditioner was asked for by itself: of some systems no sketch and no layers know enough.

    Args:
        preconditioner, curvature, damping: as of `CG`.
        targets: residuals to reach, of all right-hand sides.
        prepare: makes the preconditioner; None where there is one already.
        rank: rows of a sketch.
    """
    found: list[Patience | FirstStep] = []
    if prepare is not None and _is_sketch(preconditioner, curvature):
        found.append(Patience(prepare, rank, targets))
    elif prepare is not None and waits(preconditioner, curvature):
        found.append(FirstStep(prepare))
    if isinstance(preconditioner, str) and curvature.size <= _DENSE:

        def written_out() -> DenseFactor | None:
            factor = DenseFactor.of(Damped(curvature, damping).written_out()[0])
            return factor if factor.kind == "cholesky" else None

        vectors = curvature.vectors_to_write() + _FACTORISED * curvature.size
        found.append(Patience(written_out, vectors, targets))
    return found


def _is_sketch(preconditioner: Preconditioner, curvature: LinearOperator) -> bool:
    return preconditioner == "nystrom" or preconditioner == "auto" and not by_layers(curvature)
