"""What changes when many examples are left out together: test losses, and θ̂ itself."""

import keras
import numpy as np

from keras_influence.copies import copied
from keras_influence.engine.data import batches as data
from keras_influence.engine.parameters import Parameters
from keras_influence.engine.selection import select
from keras_influence.questions.session import Session
from keras_influence.validate import as_positions


def group_influence(
    model,
    test,
    train,
    groups,
    *,
    order=1,
    target=None,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """Predict how each test loss would change if a whole group were left out.

    `values[i, s] = ∇ℓ(test_i)ᵀ Δθ_s`, with Δθ_s as in `parameter_influence`. Order 1
    is the sum of the group's influence scores (Koh et al. 2019); order 2 takes the
    group's own curvature out of H, which matters when a group is large or its
    examples are alike.

    Args:
        model, test, train: as in `influence`.
        groups: a list of groups, each an array of positions in `train` or a boolean
            mask over it.
        order: 1 or 2. Order 2 solves one system for each group.
        target, method, damping, curvature, batch_size, class_weight, variables, verbose:
            as in `influence`.

    Returns:
        (n_test, n_groups) array in units of the loss. Positive: the group is helpful.

    Raises:
        As `inverse_hvp`.
    """
    _check_order(order)
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
    )
    if not isinstance(groups, (list, tuple)) or not groups:
        raise TypeError(
            "`groups` should be a list of groups, each an array of positions in `train`. "
            f"Received: {type(groups).__name__}"
        )
    positions = [as_positions(g, session.train.n, f"groups[{i}]") for i, g in enumerate(groups)]
    test = session.read(test, "test", batch_size if isinstance(test, tuple) else None)
    subsets = [session.train.subset(p) for p in positions]
    changes = _changes(session, subsets, order)
    return session.example_gradients(test, target).astype(np.float64) @ changes.T


def parameter_influence(
    model,
    train_subset,
    train,
    *,
    order=1,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """Predict the change of θ̂ if part of the training data were left out.

    Order 1: Δθ = (H + λI)⁻¹ (1/n) Σ ∇ℓ(z). Order 2, a Newton step: the same with the
    curvature of the left-out examples taken out of H, exact for quadratic losses.

    Args:
        model, train: as in `influence`.
        train_subset: positions in `train`, a boolean mask over it, or the examples
            themselves as `(x, y)` or `(x, y, sample_weight)`.
        order: 1 or 2.
        method, damping, curvature, batch_size, class_weight, variables, verbose: as in
            `influence`.

    Returns:
        A list of arrays aligned with `model.trainable_variables` (or `variables`).
        `with_change(model, change)` applies it to a copy of the model.

    Raises:
        As `inverse_hvp`.
    """
    _check_order(order)
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
    )
    if isinstance(train_subset, tuple):
        subset = data.read(train_subset, batch_size, "train_subset", class_weight)
    else:
        subset = session.train.subset(as_positions(train_subset, session.train.n, "train_subset"))
    change = _changes(session, [subset], order)[0]
    return session.objective.parameters.split(session.as_rows(change))


def with_change(model, change, variables=None):
    """A copy of `model` with `change` added to its weights; `model` stays as it is.

    Args:
        model: a `keras.Model` that Keras can rebuild from its config.
        change: a list of arrays, as `parameter_influence` returns it.
        variables: the selection that `change` was computed with.

    Returns:
        A model of the same class with the same compile state and the changed weights.

    Raises:
        ValueError: `change` does not fit, or Keras cannot copy the model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
    parameters = Parameters(select(model, variables))
    if not isinstance(change, (list, tuple)) or [np.shape(c) for c in change] != parameters.shapes:
        raise ValueError(f"`change` should be a list of arrays of shapes {parameters.shapes}.")
    if not all(np.isfinite(c).all() for c in change):
        raise ValueError("`change` should be finite, but it has NaN or infinite entries.")
    chosen = {id(v): i for i, v in enumerate(parameters.variables)}
    copy = copied(model)
    for original, twin in zip(model.variables, copy.variables):
        extra = change[chosen[id(original)]] if id(original) in chosen else 0
        twin.assign(original.numpy() + extra)
    return copy


def _changes(session, subsets, order):
    """Δθ of each subset, (number of subsets, p)."""
    rows = np.stack([_gradient(session, subset) for subset in subsets])
    if order == 1:
        return session.solve(rows).x
    solutions = session.solve_each(
        lambda: (session.solve(rows[[i]], group=s).x for i, s in enumerate(subsets))
    )
    return np.concatenate(solutions)


def _gradient(session, subset):
    """(1/n) Σ ∇ℓ over the subset: its share of ∇L, without the regulariser."""
    total = np.zeros(session.objective.parameters.size)
    for batch in subset:
        weight = session.weight(batch)
        with_examples, without = (
            session.objective.gradient(batch, w).numpy() for w in (weight, 0.0)
        )
        total += with_examples.astype(np.float64) - without
    return total / session.train.n


def _check_order(order):
    if isinstance(order, bool) or order not in (1, 2):
        raise ValueError(f"`order` should be 1 or 2. Received: order={order!r}")
