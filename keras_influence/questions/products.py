"""Products with the curvature of the training objective and with its inverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped, LinearOperator
from keras_influence.questions.case import Case
from keras_influence.questions.plans import damping_for
from keras_influence.questions.settings import (
    InverseSettings,
    MatrixArguments,
    MatrixSettings,
    SettingsArguments,
    takes,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(MatrixSettings)
def hvp(model: Any, v: Any, train: Any, **settings: Unpack[MatrixArguments]) -> Any:
    """The curvature of the training objective times `v`: (H + λI) v.

    The objective is the compiled loss of all of `train` as one batch, regularisers
    included, at `training=False`.

    Args:
        model: a built, compiled `keras.Model`.
        v: (p,) vector, (p, k) matrix of k vectors, or a list aligned with θ, which is
            `model.trainable_variables` or what `variables` selects of them.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, a batched finite
            `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        **settings: `damping` (default 0), `curvature` ("hessian" or "gauss_newton"),
            `batch_size`, `class_weight`, `variables`; see `keras_influence.questions.settings`.

    Returns:
        The product in the form of `v`, in the weights' dtype.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    found = MatrixSettings.of(settings)
    problem = found.problem(model, train)
    return ask_product(problem, found.curvature, damping_for(problem, found)[0], v)


def ask_product(problem: Problem, curvature: str, damping: float, v: Any) -> Any:
    """`hvp` for a `Problem`."""
    rows, restore = problem.parameters.as_rows(v)
    return restore(Damped(problem.curvature(curvature), damping).matmat(rows))


@takes(MatrixSettings)
def operator(model: Any, train: Any, **settings: Unpack[MatrixArguments]) -> LinearOperator:
    """The curvature of the training objective, H + λI, as a linear operator.

    For algorithms of one's own: `.matmat` and `.matvec` give its products, `.to_dense()` writes
    it out, and `.as_scipy()` is a `scipy.sparse.linalg.LinearOperator` for SciPy's solvers. Each
    product is a pass over the training data, at the weights that the model has then.

    Args:
        model, train: as in `hvp`.
        **settings: as in `hvp`.

    Returns:
        A `LinearOperator` of size p with the `dtype` of the weights.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    found = MatrixSettings.of(settings)
    problem = found.problem(model, train)
    return _Held(problem, found.curvature, damping_for(problem, found)[0])


class _Held(Damped):
    """A damped curvature that keeps its model alive, which the curvature holds only weakly."""

    def __init__(self, problem: Problem, curvature: str, damping: float) -> None:
        super().__init__(problem.curvature(curvature), damping)
        self._problem = problem


@takes(InverseSettings)
def inverse_hvp(
    model: Any, v: Any, train: Any, *, x0: Any = None, **settings: Unpack[SettingsArguments]
) -> Any:
    """The inverse of the damped curvature times `v`: (H + λI)⁻¹ v.

    Args:
        model, v, train: as in `hvp`.
        x0: a guess to start from, in the form of `v`. Default zero.
        **settings: `method` (default "cg"), `damping` (0.01), `curvature` ("hessian" or
            "gauss_newton"), `batch_size`, `class_weight`, `variables`, `verbose`; see
            `keras_influence.questions.settings`.

    Returns:
        The solution in the form of `v`, in the weights' dtype. A
        `ConvergenceWarning` says if the solver missed its tolerance.

    Raises:
        NegativeCurvatureError: the system is not positive definite and the method needs it.
        DivergenceError: the method diverged.
        SolverError: there is no answer for another reason.
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    return ask_inverse(Case.of(model, train, InverseSettings.of(settings)), v, x0)


def ask_inverse(case: Case, v: Any, x0: Any = None) -> Any:
    """`inverse_hvp` for a `Case`."""
    parameters = case.problem.parameters
    rows, restore = parameters.as_rows(v)
    start = None if x0 is None else parameters.as_rows(x0, "x0")[0]
    if start is not None and start.shape != rows.shape:
        raise ValueError(
            f"`x0` should have the form of `v`. Received: {len(start)} and {len(rows)} vectors"
        )
    solution, _ = case.solve(rows, start)
    return restore(case.problem.as_rows(solution.x))
