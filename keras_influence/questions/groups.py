"""What changes when many examples are left out together: test losses, and θ̂ itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_influence.copies import copied, random_state_kept
from keras_influence.engine.parameters import Parameters
from keras_influence.engine.problem import Problem
from keras_influence.engine.selection import select
from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import (
    Bars,
    Target,
    bars_over,
    block_size,
    gradient_blocks,
    read_test,
    solved,
)
from keras_influence.questions.case import Case
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import as_positions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Settings)
def group_influence(
    model: Any,
    test: Any,
    train: Any,
    groups: Sequence[Any],
    *,
    order: int = 1,
    target: Target | None = None,
    **settings: Unpack[SettingsArguments],
) -> np.ndarray:
    """Predict how each test loss would change if a whole group were left out.

    `values[i, s] = ∇ℓ(test_i)ᵀ Δθ_s`, with Δθ_s as in `parameter_influence`. Order 1
    is the sum of the group's influence scores (Koh et al. 2019); order 2 takes the
    group's own curvature out of H, which matters when a group is large or its
    examples are alike.

    Args:
        model, test, train, target: as in `influence`.
        groups: a list of groups, each an array of positions in `train` or a boolean
            mask over it.
        order: 1 or 2. Order 2 solves one system for each group.
        **settings: as in `influence`.

    Returns:
        (n_test, n_groups) array in units of the loss. Positive: the group is helpful.

    Raises:
        As `inverse_hvp`.
    """
    _check_order(order)
    return ask_group_influence(
        Case.of(model, train, Settings.of(settings)), test, groups, order, target
    )


def ask_group_influence(
    case: Case, test: Any, groups: Sequence[Any], order: int = 1, target: Target | None = None
) -> np.ndarray:
    """`group_influence` for a `Case`."""
    _check_order(order)
    if not isinstance(groups, (list, tuple)) or not groups:
        raise TypeError(
            "`groups` should be a list of groups, each an array of positions in `train`. "
            f"Received: {type(groups).__name__}"
        )
    problem = case.problem
    positions = [as_positions(g, problem.n, f"groups[{i}]") for i, g in enumerate(groups)]
    examples = read_test(problem, test, target)

    def question(attempt: Attempt) -> np.ndarray:
        values = np.empty((examples.n, len(groups)))
        bars = bars_over(problem, f"Influence of {len(groups)} groups", len(groups))
        for columns, changes in _changes(problem, attempt, positions, order, bars):
            for where, rows in gradient_blocks(problem, examples, target, bars=bars):
                values[where, columns] = rows.astype(np.float64) @ changes.T
        return values

    # Of order 2, one right-hand side for each system.
    return case.ask(question, len(groups) if order == 1 else 1)[0]


@takes(Settings)
def parameter_influence(
    model: Any,
    train_subset: Any,
    train: Any,
    *,
    order: int = 1,
    **settings: Unpack[SettingsArguments],
) -> list[np.ndarray]:
    """Predict the change of θ̂ if part of the training data were left out.

    Order 1: Δθ = (H + λI)⁻¹ (1/n) Σ ∇ℓ(z). Order 2, a Newton step: the same with the
    curvature of the left-out examples taken out of H, exact for quadratic losses.

    Args:
        model, train: as in `influence`.
        train_subset: positions in `train`, a boolean mask over it, or the examples
            themselves as `(x, y)` or `(x, y, sample_weight)`.
        order: 1 or 2.
        **settings: as in `influence`.

    Returns:
        A list of arrays aligned with `model.trainable_variables` (or `variables`).
        `with_change(model, change)` applies it to a copy of the model.

    Raises:
        As `inverse_hvp`.
    """
    _check_order(order)
    return ask_parameter_influence(
        Case.of(model, train, Settings.of(settings)), train_subset, order
    )


def ask_parameter_influence(case: Case, train_subset: Any, order: int = 1) -> list[np.ndarray]:
    """`parameter_influence` for a `Case`."""
    _check_order(order)
    problem = case.problem
    if isinstance(train_subset, tuple):
        # These are training examples, so they are weighted as such.
        weights = case.settings.class_weight
        subset = problem.read(train_subset, "train_subset", weights)
    else:
        subset = problem.train.subset(as_positions(train_subset, problem.n, "train_subset"))
    row, group = problem.gradient(subset)[None], subset if order == 2 else None
    change, _ = case.ask(lambda attempt: attempt.solve(row, group=group).x, 1)
    return problem.parameters.split(problem.as_rows(change)[0])


def with_change(model: Any, change: Sequence[Any], variables: Any = None) -> Any:
    """A copy of `model` with `change` added to its weights; `model` stays as it is.

    Args:
        model: a `keras.Model` that Keras can rebuild from its config.
        change: a list of arrays, as `parameter_influence` returns it.
        variables: the selection that `change` was computed with.

    Returns:
        A model of the same class with the same compile state and the changed weights.

    Raises:
        ValueError: `change` does not fit, or Keras cannot copy the model.
        TypeError: `model` is no `keras.Model`.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
    parameters = Parameters(select(model, variables))
    if not isinstance(change, (list, tuple)) or [np.shape(c) for c in change] != parameters.shapes:
        raise ValueError(f"`change` should be a list of arrays of shapes {parameters.shapes}.")
    if not all(np.isfinite(c).all() for c in change):
        raise ValueError("`change` should be finite, but it has NaN or infinite entries.")
    with random_state_kept():
        copy = copied(model)
    for original, twin in zip(model.variables, copy.variables):
        place = parameters.index(original)
        twin.assign(original.numpy() + (0 if place is None else change[place]))
    return copy


def _changes(
    problem: Problem,
    attempt: Attempt,
    groups: Sequence[np.ndarray],
    order: int,
    bars: Bars | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Δθ of each group of positions, block by block: (slice, (k, p))."""
    blocks = _gradients(problem, groups, bars)
    if order == 1:
        yield from (
            (block.where, block.solution.x) for block in solved(problem, attempt, blocks, bars)
        )
        return
    for where, rows in blocks:
        subsets = map(problem.train.subset, groups[where])
        steps = [attempt.solve(row[None], group=s).x for row, s in zip(rows, subsets)]
        yield where, np.concatenate(steps)


def _gradients(
    problem: Problem, groups: Sequence[np.ndarray], bars: Bars | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Each group's share of ∇L, block by block: (slice, (k, p))."""
    size = block_size(problem.parameters.size)
    step = bars or problem.progress.stage(f"Gradients of {len(groups)} groups", len(groups))
    for start in range(0, len(groups), size):
        rows = []
        for count, group in enumerate(groups[start : start + size], start + 1):
            rows.append(problem.gradient(problem.train.subset(group)))
            step(count)
        yield slice(start, start + len(rows)), np.stack(rows)


def _check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or order not in (1, 2):
        raise ValueError(f"`order` should be 1 or 2. Received: order={order!r}")
