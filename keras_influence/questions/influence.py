"""Influence: how each test loss would change without each training example."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.questions.case import Case
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import Settings, SettingsArguments, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

Target = Callable[[Any, Any, Any], Any]


@takes(Settings)
def influence(
    model: Any,
    test: Any,
    train: Any,
    *,
    target: Target | None = None,
    **settings: Unpack[SettingsArguments],
) -> InfluenceScores:
    """Predict how each test loss would change if each training example were left out.

    `values[i, j] = +∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j) / n`, in units of the loss:
    -1/n times Koh and Liang's I_up,loss (2017, eq. 2). Positive = helpful
    (proponent), negative = harmful (opponent).

    Args:
        model: a built, compiled and trained `keras.Model`. Evaluated with
            `training=False`: dropout is off, BatchNormalization is frozen.
        test: examples to explain, in the forms that `train` takes.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, a batched finite `tf.data.Dataset`,
            or a `keras.utils.PyDataset`: the training data, in an order that is the same at
            each pass.
        target: a function of `(x, y, y_pred)` that returns one number per test example,
            (batch,), to be explained in place of the test loss: a margin, a class's
            logit, a regression output. A positive score then means that leaving the
            training example out would raise the target. Written with TensorFlow or
            `keras.ops`.
        **settings: `method` (default "auto"), `damping` (0.01), `curvature` ("auto"),
            `batch_size`, `class_weight`, `variables`, `verbose`; see
            `keras_influence.questions.settings`.

    Returns:
        `InfluenceScores` with `values` of shape (n_test, n_train).

    Raises:
        As `inverse_hvp`.
    """
    return ask_influence(Case.of(model, train, Settings.of(settings)), test, target)


def ask_influence(case: Case, test: Any, target: Target | None = None) -> InfluenceScores:
    """`influence` for a `Case`."""
    problem = case.problem
    rows = problem.example_gradients(problem.read(test, "test"), target)
    solution, plan = case.solve(rows)
    return InfluenceScores(
        values=problem.scores(solution.x),
        residual=solution.residual,
        iterations=np.array(solution.iterations),
        converged=solution.converged,
        passes=solution.passes,
        solver=solution.solver,
        details=solution.details,
        curvature=plan.curvature,
        damping=plan.damping,
        reason=plan.reason,
        target=name_of(target),
        parameters=tuple(v.path for v in problem.parameters.variables),
    )


def name_of(target: Target | None) -> str:
    """What scores are the change of, in words."""
    if target is None:
        return "test loss"
    name = getattr(target, "__name__", "<lambda>")
    return "target" if name == "<lambda>" else name
