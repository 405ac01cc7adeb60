"""How a score depends on the training input: which pixels made an example helpful."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import Target, read_test, solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import as_indices

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Settings)
def input_influence(
    model: Any,
    test: Any,
    train: Any,
    *,
    indices: Any = None,
    target: Target | None = None,
    **settings: Unpack[SettingsArguments],
) -> Any:
    """The gradient of each influence score with respect to the training example's input.

    `result[i, j] = ∂/∂x_j [∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j)] / n`, with H and the
    test gradient held fixed: -1/n times Koh and Liang's I_pert,loss (2017, eq. 5).
    Moving x_j by δ changes test loss i by about -⟨result[i, j], δ⟩.

    Args:
        model, test, train, target: as in `influence`.
        indices: positions of the training examples to answer for, or a mask. Default all; the
            result has n_test times as many numbers as their inputs.
        **settings: as in `influence`.

    Returns:
        An array of shape (n_test, n_train or len(indices), *input shape), in units of the
        loss per unit of input; for a nested input, a structure of such arrays with None for
        integer inputs.

    Raises:
        ValueError: no input is of a floating type, or as in `inverse_hvp`.
    """
    return ask_input_influence(Case.of(model, train, Settings.of(settings)), test, indices, target)


def ask_input_influence(
    case: Case, test: Any, indices: Any = None, target: Target | None = None
) -> Any:
    """`input_influence` for a `Case`."""
    problem = case.problem
    x, *_ = keras.utils.unpack_x_y_sample_weight(problem.train.head(1))
    if not any(t.dtype.is_floating for t in tf.nest.flatten(x)):
        raise ValueError("`train` has no floating input to differentiate with respect to.")
    asked = problem.train
    if indices is not None:
        asked = asked.subset(as_indices(indices, problem.n, "indices"))
    examples = read_test(problem, test, target)

    def question(attempt: Attempt) -> np.ndarray:
        values = np.empty((examples.n, asked.n, _width(x)), problem.parameters.dtype.as_numpy_dtype)
        title = f"Input influence on {examples.n} test examples"
        for block in solved_blocks(problem, attempt, examples, target, title=title):
            found = problem.input_gradients_by_batch(asked, block.solution.x)
            title = f"Input gradients of {asked.n} examples"
            for columns, part in block.over(found, len(asked), title):
                values[block.where, columns] = part
        return values

    return _unflattened(case.ask(question, examples.n)[0], x)


def _width(x: Any) -> int:
    """How many floating numbers there are in the input of one example."""
    floating = [leaf for leaf in tf.nest.flatten(x) if leaf.dtype.is_floating]
    return sum(int(np.prod(leaf.shape[1:], dtype=np.int64)) for leaf in floating)


def _unflattened(values: np.ndarray, x: Any) -> Any:
    """(k, n, all features) cut into the structure and shapes of the input `x`."""
    start = 0
    parts: list[np.ndarray | None] = []
    for leaf in tf.nest.flatten(x):
        if not leaf.dtype.is_floating:
            parts.append(None)
            continue
        shape = tuple(leaf.shape[1:])
        size = int(np.prod(shape, dtype=np.int64))
        parts.append(values[..., start : start + size].reshape(*values.shape[:2], *shape))
        start += size
    return tf.nest.pack_sequence_as(x, parts) if tf.nest.is_nested(x) else parts[0]
