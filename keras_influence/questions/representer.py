"""Representer points: the last layer's weights as a sum over the training examples."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target, gradient_blocks, read_test
from keras_influence.questions.evidence import name_of
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import LayerArguments, LayerSettings, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A gradient that is left, as a part of the regulariser's, with which the sum is still believed.
_TOLERANCE = 0.01


@takes(LayerSettings)
def representer_influence(
    model: Any,
    test: Any,
    train: Any,
    *,
    target: Target | None = None,
    **settings: Unpack[LayerArguments],
) -> InfluenceScores:
    """What each training example has given to the last layer, and so to each test loss.

    Where the kernel W of the last `Dense` layer is at a minimum of the training loss with the
    regulariser l2 · ΣW², it is a sum over training examples, W = - Σ_j ∇_W ℓ(train_j) / (2 l2 n)
    (Yeh et al. 2018, theorem 3.1), and so is the layer's output for a test example. Without the
    term of train_j, to first order in the output, the test loss would change by

        values[i, j] = ∇_W ℓ(test_i) · ∇_W ℓ(train_j) / (2 l2 n)

    positive = helpful, in units of the loss, as in `influence`. The other examples' terms are
    held, so it is not what leaving the example out does: it is `influence` of the kernel
    alone with 2 l2 · I in place of the curvature. One pass, no solve.

    Args:
        model, test, train, target: as in `influence`.
        **settings: `batch_size`, `class_weight`, `verbose`, as there. θ is the last kernel.

    Returns:
        `InfluenceScores` with `curvature="none"`. `residual` is the gradient that training has
        left in W, relative to the regulariser's; `converged` says whether it is below 0.01.

    Raises:
        ValueError: the last layer is no `Dense` layer with an L2 regulariser; and as `influence`.
    """
    found = LayerSettings.of(settings)
    kernel = _kernel(model)
    l2 = float(kernel.regularizer.l2)
    chosen = dataclasses.replace(found, variables=[kernel], verbose=0)
    problem = chosen.problem(model, train)
    examples = read_test(problem, test, target)
    shown = Progress(found.verbose).stage("Representer points", examples.n)
    values = np.empty((examples.n, problem.n))
    for where, rows in gradient_blocks(problem, examples, target):
        values[where] = problem.scores(rows) / (2 * l2)
        shown(where.stop)
    shown.close()
    pull = 2 * l2 * kernel.numpy().ravel().astype(np.float64)
    left = problem.gradient(problem.train) + pull
    residual = float(np.linalg.norm(left) / np.linalg.norm(pull)) if pull.any() else np.inf
    return InfluenceScores(
        values=values,
        residual=np.full(examples.n, residual),
        iterations=np.zeros(examples.n, int),
        converged=np.full(examples.n, residual < _TOLERANCE),
        passes=1.0,
        solver={"class_name": "Representer", "config": {"l2": l2}},
        curvature="none",
        damping=2 * l2,
        target=name_of(target),
        parameters=(kernel.path,),
    )


def _kernel(model: Any) -> Any:
    """The last layer's kernel."""
    layers = [layer for layer in getattr(model, "layers", ()) if layer.weights]
    kernel = getattr(layers[-1], "kernel", None) if layers else None
    dense = bool(layers) and isinstance(layers[-1], keras.layers.Dense)
    regulariser = getattr(kernel, "regularizer", None)
    only_l2 = isinstance(regulariser, keras.regularizers.L2) and float(regulariser.l2) > 0
    if not (dense and only_l2):
        name = layers[-1].name if layers else "none"
        raise ValueError(
            "`model` should end in a Dense layer with kernel_regularizer=keras.regularizers.L2(l2): "
            "without it no weight is a sum over training examples. Add one, and train that layer to "
            f"convergence. Received: last layer {name!r}"
        )
    return kernel
