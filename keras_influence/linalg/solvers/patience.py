"""How long to go on without a preconditioner that would cost many products to make."""

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers.preconditioners import Preconditioner, by_layers

# What a product costs besides its vectors, in vectors.
_PRODUCT = 2
# Iterations before their speed says much.
_EARLIEST = 3


class Patience:
    """Whether the iterations that are left seem to cost less than a sketch.

    The speed so far is taken for the speed to come; conjugate gradients only get faster. A hard
    system is given up after a few iterations, which cost less than half of the sketch.

    Args:
        rank: rows of the sketch.
        targets: residuals to reach, of all right-hand sides.
    """

    def __init__(self, rank: int, targets: Array) -> None:
        self._sketch, self._targets = rank + _PRODUCT, targets
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
        if self._steps < min(_EARLIEST, self._sketch / 2 // iteration):
            return False
        gained = (self._start - missing) / max(1, self._steps)
        return bool(missing * iteration > gained * self._sketch)


def may_wait(preconditioner: Preconditioner, curvature: LinearOperator) -> bool:
    """Whether a preconditioner would be a sketch that nobody has asked for by itself."""
    if preconditioner == "auto":
        return by_layers(curvature) is None
    return preconditioner == "nystrom"
