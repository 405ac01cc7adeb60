"""Self-influence: which training examples prop up their own predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.questions.blocks import solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.combined import is_several
from keras_influence.questions.plans import Attempt
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import as_indices

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Settings)
def self_influence(
    model: Any, train: Any, *, indices: Any = None, **settings: Unpack[SettingsArguments]
) -> np.ndarray:
    """How much each training example props up its own prediction: ∇ℓ(z)ᵀ (H + λI)⁻¹ ∇ℓ(z).

    Mislabelled and atypical examples have the largest values. Divided by n it is
    the predicted rise of an example's own loss if it were left out. One solve
    per training example, in blocks that share their passes over the data.

    Args:
        model, train: as in `influence`; of a list of models, the mean.
        indices: positions of the training examples to answer for, or a mask. Default all.
        **settings: as in `influence`.

    Returns:
        (n_train,) or (len(indices),) array in units of the loss times n; the largest are the
        most suspicious.

    Raises:
        As `inverse_hvp`.
    """
    if is_several(model):
        parts = [self_influence(each, train, indices=indices, **settings) for each in model]
        return np.mean(parts, axis=0)
    return ask_self_influence(Case.of(model, train, Settings.of(settings)), indices)


def ask_self_influence(case: Case, indices: Any = None) -> np.ndarray:
    """`self_influence` for a `Case`."""
    problem = case.problem
    asked, name = problem.train, "train"
    if indices is not None:
        asked, name = asked.subset(as_indices(indices, problem.n, "indices")), "indices"

    def question(attempt: Attempt) -> np.ndarray:
        values = np.empty(asked.n)
        title = f"Self-influence of {asked.n} examples"
        for block in solved_blocks(problem, attempt, asked, title=title, name=name):
            gradients = block.gradients.astype(np.float64)
            values[block.where] = np.einsum("ij,ij->i", gradients, block.solution.x)
        return values

    return case.ask(question, asked.n)[0]
