"""How a score depends on the training input: which pixels made an example helpful."""

import numpy as np
import tensorflow as tf

from keras_influence.questions.session import Session


def input_influence(
    model,
    test,
    train,
    *,
    indices=None,
    target=None,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """The gradient of each influence score with respect to the training example's input.

    `result[i, j] = ∂/∂x_j [∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j)] / n`, with H and the
    test gradient held fixed: -1/n times Koh and Liang's I_pert,loss (2017, eq. 5).
    Moving x_j by δ changes test loss i by about -⟨result[i, j], δ⟩.

    Args:
        model, test, train, target, method, damping, curvature, batch_size, class_weight,
            variables, verbose: as in `influence`.
        indices: positions of the training examples to answer for. Default all; the result
            has n_test times as many numbers as their inputs.

    Returns:
        An array of shape (n_test, n_train or len(indices), *input shape), in units of the
        loss per unit of input; for a nested input, a structure of such arrays with None for
        integer inputs.

    Raises:
        ValueError: no input is of a floating type, or as in `inverse_hvp`.
    """
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
    x = session.train.head(1)[0]
    if not any(t.dtype.is_floating for t in tf.nest.flatten(x)):
        raise ValueError("`train` has no floating input to differentiate with respect to.")
    test = session.read(test, "test", batch_size if isinstance(test, tuple) else None)
    asked = session.picked(indices)
    rows = session.as_rows(session.solve(session.example_gradients(test, target)).x)
    shown = session.progress.over(asked, f"Input gradients of {asked.n} examples", len(asked))
    parts = [
        session.objective.input_gradients(batch, session.weight(batch), rows).numpy()
        for batch in shown
    ]
    return _unflattened(np.concatenate(parts, axis=1) / session.train.n, x)


def _unflattened(values, x):
    """(k, n, all features) cut into the structure and shapes of the input `x`."""
    start, parts = 0, []
    for leaf in tf.nest.flatten(x):
        if not leaf.dtype.is_floating:
            parts.append(None)
            continue
        shape = tuple(leaf.shape[1:])
        size = int(np.prod(shape, dtype=np.int64))
        parts.append(values[..., start : start + size].reshape(*values.shape[:2], *shape))
        start += size
    return tf.nest.pack_sequence_as(x, parts) if tf.nest.is_nested(x) else parts[0]
