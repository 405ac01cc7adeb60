"""What every solver promises: one system, one definition of the residual."""

import dataclasses
import inspect
import warnings

import numpy as np

from keras_influence.errors import ConvergenceWarning, DivergenceError


@dataclasses.dataclass(frozen=True)
class Solution:
    """The answer X to A X = V, with the evidence for it.

    Attributes:
        x: (p, k) array.
        residual: (k,) relative residuals ‖v - A x‖ / ‖v‖, computed anew with A itself.
        iterations: (k,) iterations taken.
        converged: (k,) whether `residual` is within the solver's tolerance.
        positive_definite: False if A was found not to be, else True.
        solver: the solver's configuration.
    """

    x: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    positive_definite: bool
    solver: dict


class Solver:
    """Solves A X = V for a symmetric operator A that already holds the damping.

    Subclasses implement `_solve`, and validate their options in `__init__`,
    whose arguments they keep as attributes of the same names.
    """

    tol: float

    def factorise(self, operator):
        """What can be computed once for an operator and used by many solves; None if nothing."""
        return None

    def solve(self, operator, columns, on_step=None, factor=None):
        """Solve A X = V.

        Args:
            operator: a `LinearOperator`, A.
            columns: (p, k) array, V. A zero column has the answer zero.
            on_step: called as `on_step(iteration, residual)` while it works.
            factor: the result of `factorise(operator)`, to share it between solves.

        Returns:
            A `Solution`. A column that misses the tolerance is warned about.

        Raises:
            NegativeCurvatureError: A is not positive definite and the solver needs it.
            DivergenceError: the iteration grew without bound.
        """
        factor = self.factorise(operator) if factor is None else factor
        on_step = on_step or (lambda *_: None)
        x, iterations, definite = self._solve(operator, columns, on_step, factor)
        if not np.isfinite(x).all():
            raise DivergenceError(f"{self} ended in NaN or infinity. {self.advice}")
        residual = relative_residual(operator, x, columns)
        converged = residual <= self.tol
        if not converged.all():
            warnings.warn(
                f"{self} reached a relative residual of {residual.max():.2g}, not {self.tol:.2g}, "
                f"for {(~converged).sum()} of {len(converged)} right-hand sides. {self.advice}",
                ConvergenceWarning,
                stacklevel=5,
            )
        iterations = np.broadcast_to(iterations, residual.shape)
        return Solution(x, residual, iterations, converged, definite, self.get_config())

    advice = "Raise `damping` or the solver's budget."

    def _solve(self, operator, columns, on_step, factor):
        """Return `(x, iterations, positive_definite)`."""
        raise NotImplementedError

    def get_config(self):
        """`{"class_name": ..., "config": {...}}`, as `solvers.get` reads it."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        config = {name: getattr(self, name) for name in names}
        return {"class_name": type(self).__name__, "config": config}

    def __repr__(self):
        config = self.get_config()["config"]
        options = ", ".join(f"{k}={v!r}" for k, v in config.items())
        return f"{type(self).__name__}({options})"


def relative_residual(operator, x, columns):
    """‖v - A x‖ / ‖v‖ for each column; 0 where v and x are zero."""
    norms = column_norms(columns)
    errors = column_norms(columns - operator.matmat(x.astype(operator.dtype)))
    return errors / np.where(norms > 0, norms, 1)


def column_norms(columns):
    """Euclidean norm of each column, in float64."""
    return np.linalg.norm(np.asarray(columns, np.float64), axis=0)


def check_number(name, value, low=0, integer=False, strict=False, optional=False):
    """Raise unless `value` is a finite number >= `low` (> `low` if `strict`)."""
    if optional and value is None:
        return
    kind = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    relation = ">" if strict else ">="
    expected = f"`{name}` should be {'an integer' if integer else 'a number'} {relation} {low}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{expected}. Received: {name}={value!r}")
    if not np.isfinite(value) or value < low or (strict and value == low):
        raise ValueError(f"{expected}. Received: {name}={value!r}")
