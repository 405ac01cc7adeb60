"""What can go wrong in a solve, as exceptions and warnings of their own."""

import os
import sys
import warnings

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class SolverError(RuntimeError):
    """A linear solve has no usable answer."""

    @property
    def finding(self):
        """What was found, in words; a subclass whose message has advice too leaves that out."""
        return str(self).rstrip(".")


class NegativeCurvatureError(SolverError):
    """The matrix H + λI is not positive definite, so the solver cannot answer.

    Attributes:
        eigenvalue: the smallest Ritz value of H + λI that was met. The true
            smallest eigenvalue is at or below it.
    """

    def __init__(self, eigenvalue, solver):
        self.eigenvalue = float(eigenvalue)
        self._solver = solver
        super().__init__(
            f"{solver} met negative curvature: the damped curvature matrix has an "
            f"eigenvalue at or below {eigenvalue:.3g}, so it is not positive definite. "
            "Three ways out: (1) raise `damping` by more than "
            f"{abs(eigenvalue):.2g}; (2) use curvature='gauss_newton', which is never "
            "negative for convex losses; (3) use method='minres', or for few parameters "
            "method='direct', which solve indefinite systems too."
        )

    @property
    def finding(self):
        return f"{self._solver} met negative curvature"


class UndefinedCurvatureError(SolverError, ValueError):
    """A curvature is not defined for the model's loss.

    Attributes:
        finding: why, in words.
    """

    finding = ""

    def __init__(self, message, finding):
        super().__init__(message)
        self.finding = finding


class NotFiniteError(SolverError):
    """What is known of the curvature is NaN or infinite.

    Args:
        what: what is not finite, in words.
    """

    def __init__(self, what="a product with the curvature"):
        super().__init__(
            f"{what} is NaN or infinite: some layer or loss has no finite derivative at these data, "
            "as the square root of 0. curvature='gauss_newton' needs no second derivative of the "
            "network."
        )


class DivergenceError(SolverError):
    """An iteration grew without bound and was stopped."""


class StaleError(ValueError):
    """A factorisation, or scores in a store, belong to other weights, data, settings or another loss."""

    def __init__(self, change, where, what="factorisation", way_out=None):
        super().__init__(
            f"The {what} in {where} cannot be used: {change} since it was made. "
            + (way_out or "Make it again with `Explainer(model, train, ...)`.")
        )


class ConvergenceWarning(UserWarning):
    """A solve used up its budget before it reached its tolerance."""


class CurvatureWarning(UserWarning):
    """`curvature="auto"` fell back to Gauss-Newton."""


class ObjectiveWarning(UserWarning):
    """Part of what was minimised in training is not in the compiled loss."""


def warn(message, category):
    """Warn at the line outside this package that led here, however deep "here" is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
