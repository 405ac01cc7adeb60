"""What every solver promises: one system, one definition of the residual."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_influence.errors import ConvergenceWarning, DivergenceError, warn
from keras_influence.linalg.arrays import Array, OnStep
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.damped import Damped, undamped
from keras_influence.linalg.operators.metered import Metered
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.solvers.residuals import (
    bounded_residual,
    measured,
    relative_residual,
    sampled_residual,
)
from keras_influence.linalg.sweeps import row_norms

# Right-hand sides shorter than this lose digits in products; and the highest power of two in float32, nearly.
_TINY, _HIGHEST = 1e-25, 120


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The answers to A x = v for k right-hand sides v, with the evidence for them.

    Attributes:
        x: (k, p) array, one answer a row.
        residual: (k,) relative residuals ‖v - A x‖ / ‖v‖, computed anew with A itself. Where
            a solver is not judged by it, of 16 rows at most and of one where rows have millions of numbers;
            the others have the largest of these.
            Where a matrix solves for many rows, a bound on it, where that is within the tolerance; see
            `bounded_residual`.
        iterations: (k,) iterations taken.
        converged: (k,) whether `residual` is within the solver's tolerance.
        passes: passes over the full data, all rows together, this check included.
        positive_definite: False if A was found not to be, else True.
        solver: the solver's configuration.
        details: what else the solver has to say, by name.
        factor: what was computed once for A, for `solve(..., factor=)`.
    """

    x: Array
    residual: Array
    iterations: Array
    converged: Array
    passes: float
    positive_definite: bool
    solver: dict[str, Any]
    details: dict[str, Any]
    factor: Any = dataclasses.field(repr=False)


class Solver:
    """Solves (H + λI) x = v for a symmetric curvature H.

    Subclasses implement `_solve`, and validate their options in `__init__`,
    whose arguments they keep as attributes of the same names.

    Attributes:
        tol: relative residual above which a right-hand side has not converged; None for an
            approximation that is not judged by it.
        preconditions: whether what `factorise` returns has a method `precondition`.
        approximates: the curvature that it can only approximate, or None.
        advice: what a user may do where it does not reach `tol`.
        by_bounds: whether answers to many rows cost so much less than products with A that a bound on
            their residuals is enough.
        in_double: whether right-hand sides and answers are in float64, or as the curvature's.
        row_bytes: what it takes of memory for each number of a right-hand side, about: block CG
            holds a dozen arrays of them.
    """

    tol: float | None
    by_bounds: bool = False
    in_double: bool = True
    row_bytes: int = 100
    preconditions: bool = False
    approximates: str | None = None
    advice: str = "Raise `damping` or the solver's budget."

    def factorise(self, curvature: LinearOperator, damping: float) -> Any:
        """What can be computed once for H + λI and used by many solves; None if nothing.

        Args:
            curvature: H, without damping.
            damping: λ.
        """
        return None

    def prepare(self, curvature: LinearOperator, damping: float) -> Any:
        """The same where many solves are to come: also what one alone might do without."""
        return self.factorise(curvature, damping)

    def solve(
        self,
        system: LinearOperator,
        rows: npt.ArrayLike,
        *,
        x0: npt.ArrayLike | None = None,
        factor: Any = None,
        on_step: OnStep | None = None,
    ) -> Solution:
        """Solve A x = v for each row v.

        Args:
            system: A, a `Damped` curvature; any other operator counts as one with λ = 0.
            rows: (k, p) array of right-hand sides. A zero row has the answer zero.
            x0: (k, p) array to start from, if the method iterates. Default zero.
            factor: the `Solution.factor` of an earlier solve with the same system.
            on_step: called as `on_step(iteration, residual)` while it works.

        Returns:
            A `Solution`. A row that misses the tolerance is warned about.

        Raises:
            NegativeCurvatureError: A is not positive definite and the solver needs it.
            DivergenceError: the iteration grew without bound.
            ValueError: the solver cannot take such a system, or `rows` are not (k, p).
        """
        curvature, damping = undamped(system)
        meter = Metered(curvature)
        dtype = np.float64 if self.in_double else np.result_type(system.dtype, np.float32)
        v, start = _as_rows("rows", rows, system.size, dtype), x0
        scale = _scale(v)
        if scale is not None:
            v, start = v * scale, None if x0 is None else np.asarray(x0, dtype) * scale
        problem = Problem(
            system=Damped(meter, damping),
            curvature=meter,
            rows=v,
            start=_start(v, start),
            factor=self.factorise(meter, damping) if factor is None else factor,
            on_step=on_step or _silent,
        )
        answer = self._solve(problem)
        if not np.isfinite(answer.x).all():
            raise DivergenceError(f"{self} ended in NaN or infinity. {self.advice}")
        solution = self._certified(problem, answer)
        return solution if scale is None else dataclasses.replace(solution, x=solution.x / scale)

    def _solve(self, problem: Problem) -> Answer:
        """Return an `Answer` to a `Problem`."""
        raise NotImplementedError

    def _certified(self, problem: Problem, answer: Answer) -> Solution:
        """The answer with its residual computed anew, and a warning if it misses the tolerance."""
        few = len(problem.rows) <= measured(problem)
        sampled = self.tol is None and answer.remainder is None and not few
        tol = answer.tol if self.tol is None else self.tol
        if sampled:
            residual = sampled_residual(problem, answer)
        elif self.by_bounds and self.tol is not None:
            residual = bounded_residual(problem, answer, self.tol)
        else:
            residual = relative_residual(problem, answer)
        converged = residual <= (tol or 0)
        self.warn_of_misses(residual, converged, tol)
        approximation = {"approximation": True} if self.tol is None else {}
        return Solution(
            x=answer.x,
            residual=residual,
            iterations=np.broadcast_to(answer.iterations, residual.shape),
            converged=converged,
            passes=problem.passes,
            positive_definite=answer.positive_definite,
            solver=self.get_config(),
            details=answer.details | approximation,
            factor=problem.factor if answer.factor is None else answer.factor,
        )

    def warn_of_misses(self, residual: Array, converged: Array, tol: float | None) -> None:
        """A warning if some residuals are above `tol`; none where that is None."""
        if tol is not None and not converged.all():
            warn(
                f"{self} reached a relative residual of {residual.max():.2g}, not {tol:.2g}, "
                f"for {(~converged).sum()} of {len(converged)} right-hand sides. {self.advice}",
                ConvergenceWarning,
            )

    def get_config(self) -> dict[str, Any]:
        """`{"class_name": ..., "config": {...}}`, as `solvers.get` reads it."""
        names = list(inspect.signature(type(self)).parameters)
        values = {name: getattr(self, name) for name in names}
        config = {k: v.get_config() if isinstance(v, Solver) else v for k, v in values.items()}
        return {"class_name": type(self).__name__, "config": config}

    def __repr__(self) -> str:
        names = self.get_config()["config"]
        options = ", ".join(f"{k}={getattr(self, k)!r}" for k in names)
        return f"{type(self).__name__}({options})"


def _silent(iteration: int, residual: float) -> None:
    """The `on_step` of who does not ask for one."""


def _scale(v: Array) -> Array | None:
    """Powers of two that bring tiny rows to a length of about one, (k, 1); None where there is none.

    As a gradient that has all but vanished is: its product would be lost below what float32 can hold.
    """
    norms = row_norms(v)
    tiny = (norms > 0) & (norms < _TINY)
    if not tiny.any():
        return None
    scale = np.ones(len(v))
    scale[tiny] = 2.0 ** np.minimum(-np.floor(np.log2(norms[tiny])), _HIGHEST)
    return scale.astype(v.dtype)[:, None]


def _start(v: Array, x0: npt.ArrayLike | None) -> Array:
    """A user's guess as an array of its own, zero for None."""
    if x0 is None:
        return np.zeros(v.shape, v.dtype)  # Which takes no memory until something is written to it.
    return _as_rows("x0", x0, v.shape[1], v.dtype, len(v)).copy()


def _as_rows(
    name: str, value: npt.ArrayLike, size: int, dtype: npt.DTypeLike, count: int | None = None
) -> Array:
    """`value` as (count, size) numbers, or a ValueError that names the argument."""
    array = np.asarray(value, dtype)
    if array.ndim != 2 or array.shape != (count or len(array), size):
        raise ValueError(
            f"`{name}` should be an array of shape ({count or 'k'}, {size}), one vector a row. "
            f"Received: shape {array.shape}"
        )
    return array
