"""What every solver promises: one system, one definition of the residual."""

import dataclasses
import inspect
import warnings
from typing import NamedTuple

import numpy as np

from keras_influence.errors import ConvergenceWarning, DivergenceError
from keras_influence.linalg.operators.metered import Metered


@dataclasses.dataclass(frozen=True)
class Solution:
    """The answer X to A X = V, with the evidence for it.

    Attributes:
        x: (p, k) array.
        residual: (k,) relative residuals ‖v - A x‖ / ‖v‖, computed anew with A itself.
        iterations: (k,) iterations taken.
        converged: (k,) whether `residual` is within the solver's tolerance.
        passes: passes over the full data, all columns together, this check included.
        positive_definite: False if A was found not to be, else True.
        solver: the solver's configuration.
        details: what else the solver has to say, by name.
        factor: what was computed once for A, for `solve(..., factor=)`.
    """

    x: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    passes: float
    positive_definite: bool
    solver: dict
    details: dict
    factor: object = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a solver is given: A X = V, a start, and what was computed once for A.

    Attributes:
        operator: A, a `LinearOperator`.
        columns: V, (p, k) float64.
        start: (p, k) float64, zero unless the caller has a guess.
        factor: what `Solver.factorise` returned for A.
        on_step: to be called as `on_step(iteration, residual)`.
    """

    operator: Metered
    columns: np.ndarray
    start: np.ndarray
    factor: object
    on_step: object

    def product(self, columns):
        """A times (p, k) float64 columns, as float64."""
        return self.operator.matmat(columns.astype(self.operator.dtype)).astype(np.float64)


class Answer(NamedTuple):
    """What a solver returns; `Solver.solve` makes a `Solution` of it."""

    x: np.ndarray
    iterations: object
    positive_definite: bool = True
    details: dict = {}


class Solver:
    """Solves A X = V for a symmetric operator A that already holds the damping.

    Subclasses implement `_solve`, and validate their options in `__init__`,
    whose arguments they keep as attributes of the same names.

    Attributes:
        tol: relative residual above which a column has not converged; None for an
            approximation that is not judged by it.
        preconditions: whether what `factorise` returns has a method `precondition`.
        approximates: the curvature that it can only approximate, or None.
    """

    tol: float
    preconditions = False
    approximates = None

    def factorise(self, operator):
        """What can be computed once for an operator and used by many solves; None if nothing."""
        return None

    def solve(self, operator, columns, *, x0=None, factor=None, on_step=None):
        """Solve A X = V.

        Args:
            operator: a `LinearOperator`, A.
            columns: (p, k) array, V. A zero column has the answer zero.
            x0: (p, k) array to start from, if the method iterates. Default zero.
            factor: the `Solution.factor` of an earlier solve with the same operator.
            on_step: called as `on_step(iteration, residual)` while it works.

        Returns:
            A `Solution`. A column that misses the tolerance is warned about.

        Raises:
            NegativeCurvatureError: A is not positive definite and the solver needs it.
            DivergenceError: the iteration grew without bound.
        """
        meter = Metered(operator)
        columns = np.asarray(columns, np.float64)
        problem = Problem(
            operator=meter,
            columns=columns,
            start=np.zeros_like(columns) if x0 is None else np.array(x0, np.float64),
            factor=self.factorise(meter) if factor is None else factor,
            on_step=on_step or (lambda *_: None),
        )
        answer = self._solve(problem)
        if not np.isfinite(answer.x).all():
            raise DivergenceError(f"{self} ended in NaN or infinity. {self.advice}")
        residual = relative_residual(problem, answer.x)
        converged = residual <= (self.tol or 0)
        if self.tol is not None and not converged.all():
            warnings.warn(
                f"{self} reached a relative residual of {residual.max():.2g}, not {self.tol:.2g}, "
                f"for {(~converged).sum()} of {len(converged)} right-hand sides. {self.advice}",
                ConvergenceWarning,
                stacklevel=5,
            )
        return Solution(
            x=answer.x,
            residual=residual,
            iterations=np.broadcast_to(answer.iterations, residual.shape),
            converged=converged,
            passes=meter.passes,
            positive_definite=answer.positive_definite,
            solver=self.get_config(),
            details=answer.details | ({"approximation": True} if self.tol is None else {}),
            factor=problem.factor,
        )

    advice = "Raise `damping` or the solver's budget."

    def _solve(self, problem):
        """Return an `Answer` to a `Problem`."""
        raise NotImplementedError

    def get_config(self):
        """`{"class_name": ..., "config": {...}}`, as `solvers.get` reads it."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        values = {name: getattr(self, name) for name in names}
        config = {k: v.get_config() if isinstance(v, Solver) else v for k, v in values.items()}
        return {"class_name": type(self).__name__, "config": config}

    def __repr__(self):
        names = self.get_config()["config"]
        options = ", ".join(f"{k}={getattr(self, k)!r}" for k in names)
        return f"{type(self).__name__}({options})"


def relative_residual(problem, x):
    """‖v - A x‖ / ‖v‖ for each column; 0 where v and x are zero."""
    norms = column_norms(problem.columns)
    return column_norms(problem.columns - problem.product(x)) / np.where(norms > 0, norms, 1)


def column_norms(columns):
    """Euclidean norm of each column, in float64."""
    return np.linalg.norm(np.asarray(columns, np.float64), axis=0)
