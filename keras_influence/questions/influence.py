"""Influence: how each test loss would change without each training example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import Target, read_test, solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.evidence import Evidence, described
from keras_influence.questions.memory import check_fits
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.questions.several import is_several
from keras_influence.questions.store import Path, check_store, fill_store

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Settings)
def influence(
    model: Any,
    test: Any,
    train: Any,
    *,
    target: Target | None = None,
    store: Path | None = None,
    **settings: Unpack[SettingsArguments],
) -> InfluenceScores:
    """Predict how each test loss would change if each training example were left out.

    `values[i, j] = +∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j) / n`, in units of the loss:
    -1/n times Koh and Liang's I_up,loss (2017, eq. 2). Positive = helpful
    (proponent), negative = harmful (opponent).

    Args:
        model: a built, compiled and trained `keras.Model`. Evaluated with
            `training=False`: dropout is off, BatchNormalization is frozen. Or a list of models
            that were trained alike with other seeds: their mean is the better score, and comes
            with its standard error.
        test: examples to explain, in the forms that `train` takes.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, Dask's too, a batched finite
            `tf.data.Dataset`, or a `keras.utils.PyDataset`: the training data, in an order that is the same at
            each pass.
        target: a function of `(x, y, y_pred)` that returns one number per test example,
            (batch,), to be explained in place of the test loss: a margin, a class's
            logit, a regression output. A positive score then means that leaving the
            training example out would raise the target. Written with TensorFlow or
            `keras.ops`. `WholeSet(function)` is one number of all of them: one row. With a
            target `test` may be `(x,)`, without labels, and its y is None.
        store: a folder to write the scores to, block by block, in Zarr's format; for more of them
            than fit into memory, and for long runs. The same call with the same store goes on
            where one before it was cut off. `InfluenceScores.open` reads it later. Needs zarr.
        **settings: `method` (default "auto"), `damping` (0.01), `curvature` ("auto"),
            `batch_size`, `class_weight`, `variables`, `verbose`; see
            `keras_influence.questions.settings`.

    Returns:
        `InfluenceScores` with `values` of shape (n_test, n_train); with a `store` they are read
        from there as they are asked for. Of a list of models, `error` is the standard error.

    Raises:
        StaleError: `store` has scores of another model, other data or other settings.
        RuntimeError: another call is filling `store`.
        MemoryError: the scores do not fit into memory, and there is no `store`.
        ImportError: `store` is given, and zarr is missing.
        And as `inverse_hvp`.
    """
    if is_several(model):
        if store is not None:
            raise ValueError(
                "`store` is for one model. Leave it out, or ask for one model at a time."
            )
        parts = [influence(each, test, train, target=target, **settings) for each in model]
        return InfluenceScores.averaged(parts)
    check_store(store)
    return ask_influence(Case.of(model, train, Settings.of(settings)), test, target, store)


def ask_influence(
    case: Case, test: Any, target: Target | None = None, store: Path | None = None
) -> InfluenceScores:
    """`influence` for a `Case`."""
    check_store(store)
    problem = case.problem
    examples = read_test(problem, test, target)
    if store is not None:
        fill_store(store, case, examples, target)
        return InfluenceScores.open(store)
    check_fits(examples.n, problem.n, problem.parameters.dtype.as_numpy_dtype)

    def question(attempt: Attempt) -> InfluenceScores:
        dtype = problem.parameters.dtype.as_numpy_dtype
        values, evidence = np.empty((examples.n, problem.n), dtype), Evidence(examples.n)
        title = f"Influence on {examples.n} test examples"
        for block in solved_blocks(problem, attempt, examples, target, title=title):
            evidence.add(block)
            for columns, part in block.scores():
                values[block.where, columns] = part
        about = described(problem, attempt.plan, target)
        return InfluenceScores(values=values, **vars(evidence), **about)

    return case.ask(question, examples.n)[0]
