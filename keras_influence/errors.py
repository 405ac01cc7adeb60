"""What can go wrong in a solve, as exceptions and warnings of their own."""

import os
import sys
import warnings

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep

# The page whose headings are the anchors below, as a path in this repository. Once the documentation
# has an address, that goes here.
DOCS = "docs/what_can_go_wrong.md"


def see(anchor):
    """Where the documentation explains something, as the last sentence of a message."""
    return f"See {DOCS}#{anchor}"


def explained(self):
    """As `__str__` of an exception or warning: its message, and where its `anchor` is."""
    message = Exception.__str__(self).rstrip(".")
    return f"{message}{'' if message.endswith('?') else '.'} {see(self.anchor)}"


class SolverError(RuntimeError):
    """A linear solve has no usable answer."""

    anchor = "no-answer"
    __str__ = explained

    @property
    def finding(self):
        """What was found, in words; a subclass whose message has advice too leaves that out."""
        return Exception.__str__(self).rstrip(".")


class NegativeCurvatureError(SolverError):
    """The matrix H + λI is not positive definite, so the solver cannot answer.

    Attributes:
        eigenvalue: the smallest Ritz value of H + λI that was met. The true
            smallest eigenvalue is at or below it.
    """

    anchor = "negative-curvature"

    def __init__(self, eigenvalue, solver, tried=False):
        """
        Args:
            tried: whether the Gauss-Newton matrix, which is never negative for convex losses, is no way out.
        """
        self.eigenvalue = float(eigenvalue)
        self._solver = solver
        convex = "use curvature='gauss_newton', which is never negative for convex losses"
        ways = [
            f"raise `damping` by more than {abs(eigenvalue):.2g}",
            *([] if tried else [convex]),
            "use method='minres', or for few parameters method='direct', which solve indefinite systems too",
        ]
        super().__init__(
            f"{solver} met negative curvature: the damped curvature matrix has an "
            f"eigenvalue at or below {eigenvalue:.3g}, so it is not positive definite. "
            f"{('Two', 'Three')[len(ways) - 2]} ways out: "
            + "; ".join(f"({i}) {way}" for i, way in enumerate(ways, 1))
            + "."
        )

    def where_gauss_newton_was_tried(self):
        """The same without the advice to use it."""
        return NegativeCurvatureError(self.eigenvalue, self._solver, tried=True)

    @property
    def finding(self):
        return f"{self._solver} met negative curvature"


class SingularError(SolverError):
    """H + λI has eigenvalues that are lost to rounding beside its largest; no other curvature helps."""

    def __init__(self, eigenvalue, least, solver):
        super().__init__(
            f"{solver} met a matrix that is singular but for rounding: it has an eigenvalue of "
            f"{eigenvalue:.2g}, and what is below {least:.2g} is rounding. Set `damping` to more "
            "than that, or scale features and targets that are large"
        )


class UndefinedCurvatureError(SolverError, ValueError):
    """A curvature is not defined for the model's loss.

    Attributes:
        finding: why, in words.
    """

    anchor = "undefined-curvature"
    finding = ""

    def __init__(self, message, finding):
        super().__init__(message)
        self.finding = finding


class NotFiniteError(SolverError):
    """What is known of the curvature is NaN or infinite.

    Args:
        what: what is not finite, in words.
    """

    anchor = "not-finite"

    def __init__(self, what="a product with the curvature"):
        super().__init__(
            f"{what} is NaN or infinite: some layer or loss has no finite derivative at these data, "
            "as the square root of 0. curvature='gauss_newton' needs no second derivative of the "
            "network."
        )


class DivergenceError(SolverError):
    """An iteration grew without bound and was stopped."""

    anchor = "divergence"


class StaleError(ValueError):
    """A factorisation, or scores in a store, belong to other weights, data, settings or another loss."""

    anchor = "stale"
    __str__ = explained

    def __init__(self, change, where, what="factorisation", way_out=None):
        super().__init__(
            f"The {what} in {where} cannot be used: {change} since it was made. "
            + (way_out or "Make it again with `Explainer(model, train, ...)`.")
        )


class ConvergenceWarning(UserWarning):
    """A solve used up its budget before it reached its tolerance."""

    anchor = "not-converged"
    __str__ = explained


class CurvatureWarning(UserWarning):
    """The curvature is another one than Gauss-Newton, of a loss part of which is held for constant, or negative."""

    anchor = "another-curvature"
    __str__ = explained


class ObjectiveWarning(UserWarning):
    """Part of what was minimised in training is not in the compiled loss."""

    anchor = "hidden-objective"
    __str__ = explained


def warn(message, category):
    """Warn at the line outside this package that led here, however deep "here" is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
