"""How long to go on without a preconditioner, which may cost much to make."""

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


class FirstStep:
    """One iteration, which shows most systems that are not definite for what they are."""

    def __init__(self) -> None:
        self._steps = -1

    def is_over(self, left: Array, active: Array) -> bool:
        """As of `Patience`."""
        self._steps += 1
        return self._steps > 0


def patience_for(
    preconditioner: Preconditioner, curvature: LinearOperator, rank: int, targets: Array
) -> Patience | FirstStep | None:
    """What says how long the preconditioner waits; None if it is made at once.

    A sketch that nobody has asked for by itself waits until it is worth its cost, and what is
    made of layers for a curvature that is doubtful for one iteration.
    """
    sketch = preconditioner == "nystrom" or preconditioner == "auto" and not by_layers(curvature)
    if sketch:
        return Patience(rank, targets)
    return FirstStep() if preconditioner == "auto" and curvature.doubtful else None
