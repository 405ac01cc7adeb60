"""Self-influence: which training examples prop up their own predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.questions.several import is_several
from keras_influence.validate import as_indices

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AveragedSelfInfluence:
    """The mean of several models' self-influence.

    Attributes:
        values: (n,) means, in units of the loss times n.
        error: (n,) their standard errors.
        models: how many.
    """

    values: np.ndarray
    error: np.ndarray
    models: int

    def __repr__(self) -> str:
        first = self.values.argmax()
        return (
            f"AveragedSelfInfluence: {len(self)} training examples, mean of {self.models} models\n"
            f"  values        largest: {self.values[first]:.3g} ± {self.error[first]:.2g} at position "
            f"{first}; median {np.median(self.values):.3g}, in units of the loss times n"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self.values, dtype)
        return array.copy() if copy and array is self.values else array

    def __len__(self) -> int:
        return len(self.values)


@takes(Settings)
def averaged_self_influence(
    models: Sequence[Any], train: Any, *, indices: Any = None, **settings: Unpack[SettingsArguments]
) -> AveragedSelfInfluence:
    """The mean of `self_influence` over several models, with its standard error.

    Args:
        models: two or more that were trained alike with other seeds.
        train, indices: as in `self_influence`.
        **settings: as in `influence`.

    Returns:
        An `AveragedSelfInfluence`, which NumPy takes as an array of its means.

    Raises:
        TypeError, ValueError: `models` is no list of two or more; and as `inverse_hvp`.
    """
    if not is_several(models):
        raise TypeError(f"`models` should be a list of models. Received: {type(models).__name__}")
    parts = np.stack([self_influence(m, train, indices=indices, **settings) for m in models])
    error = parts.std(0, ddof=1) / np.sqrt(len(parts))
    return AveragedSelfInfluence(parts.mean(0), error, len(parts))


@takes(Settings)
def self_influence(
    model: Any, train: Any, *, indices: Any = None, **settings: Unpack[SettingsArguments]
) -> np.ndarray:
    """How much each training example props up its own prediction: ∇ℓ(z)ᵀ (H + λI)⁻¹ ∇ℓ(z).

    Mislabelled and atypical examples have the largest values. Divided by n, where the loss is
    a plain mean, or as it is, where it is a sum, it is the predicted rise of an example's own loss
    if it were left out. One solve per training example, in blocks that share their passes over the data.

    Args:
        model, train: as in `influence`; of a list of models, the mean, whose standard error
            `averaged_self_influence` gives.
        indices: positions of the training examples to answer for, or a mask. Default all.
        **settings: as in `influence`.

    Returns:
        (n_train,) or (len(indices),) array in units of the loss times n; the largest are the
        most suspicious.

    Raises:
        As `inverse_hvp`.
    """
    if is_several(model):
        return averaged_self_influence(model, train, indices=indices, **settings).values
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
