"""What a solver is given, and what it returns."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from keras_influence.linalg.arrays import Array, OnStep
from keras_influence.linalg.operators.damped import Damped
from keras_influence.linalg.operators.metered import Metered


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a solver is given: A x = v for each row v, a start, and what was computed once for A.

    Attributes:
        system: A = H + λI.
        curvature: H, which counts its products.
        rows: the right-hand sides, (k, p), in float64 if the solver is.
        start: (k, p) like these, zero unless the caller has a guess.
        factor: what `Solver.factorise` returned for H and λ.
        on_step: to be called as `on_step(iteration, residual)`.
    """

    system: Damped
    curvature: Metered
    rows: Array
    start: Array
    factor: Any
    on_step: OnStep

    @property
    def passes(self) -> float:
        """Passes over the full data so far."""
        return self.curvature.passes

    def product(self, rows: Array) -> Array:
        """A times (k, p) float64 rows, as float64."""
        image = self.system.matmat(rows.astype(self.system.dtype, copy=False))
        return image.astype(np.float64, copy=False)

    def remainder(self, x: Array) -> Array:
        """v - A x for each row, as an array of its own; no product where x is zero."""
        if not x.any():
            return self.rows.copy()
        return self.rows - self.system.matmat(x.astype(self.system.dtype, copy=False))


class Answer(NamedTuple):
    """What a solver returns; `Solver.solve` makes a `Solution` of it.

    Attributes:
        x, iterations, positive_definite, details: as in `Solution`.
        remainder: `Problem.remainder(x)`, if the solver has computed it anew, for this very x.
        factor: what was computed for A after all; None for that of the `Problem`.
        tol: the residual that this answer should have, where the solver's says nothing of it.
    """

    x: Array
    iterations: Any
    positive_definite: bool = True
    details: dict[str, Any] = {}
    remainder: Array | None = None
    factor: Any = None
    tol: float | None = None
