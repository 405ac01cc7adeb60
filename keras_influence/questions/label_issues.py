"""Label issues: which labels look wrong, by three measures, and what may be right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.rows import size
from keras_influence.engine.loss.classes import Classes, probabilities, read_classes
from keras_influence.engine.loss.looks import called
from keras_influence.engine.problem import Problem
from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import gradient_blocks, solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.settings import Settings, SettingsArguments, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

MEASURES = ("self_influence", "loss", "margin")
_COLUMNS = ("index", "given", "suggested", "predicted", *MEASURES)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LabelIssues:
    """Training examples, those with the most suspicious labels first.

    Attributes:
        index: (n,) positions in the training data.
        given: (n,) the label of each, as the number that stands in the data.
        suggested: (n,) the most probable class among the others.
        predicted: (n,) the most probable class of all.
        self_influence: (n,) ∇ℓᵀ (C + λI)⁻¹ ∇ℓ, in units of the loss times n; large is suspicious.
        loss: (n,) the loss with the given label; large is suspicious.
        margin: (n,) the predicted leave-one-out margin, in units of the loss: by how much the
            loss with the suggested label would exceed that with the given one, had the example
            been left out of training; negative is suspicious.
        by: the measure that the order is by.
    """

    index: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    predicted: np.ndarray
    self_influence: np.ndarray
    loss: np.ndarray
    margin: np.ndarray
    by: str

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        columns = [getattr(self, name)[:5].tolist() for name in _COLUMNS]
        rows = [
            f"  {i:>6} {given!s:>6} {suggested!s:>10} {predicted!s:>10} {own:>15.3g} {loss:>10.3g} "
            f"{margin:>+10.3g}"
            for i, given, suggested, predicted, own, loss, margin in zip(*columns)
        ]
        lines = [
            f"LabelIssues: {len(self)} training examples, the most suspicious first, by {self.by}",
            "   index  given  suggested  predicted  self_influence       loss     margin",
            *rows,
        ]
        return "\n".join([*lines, "  ..."] if len(self) > 5 else lines)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a column for each attribute, in the same order."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame({name: getattr(self, name) for name in _COLUMNS})


@takes(Settings)
def find_label_issues(
    model: Any,
    train: Any,
    *,
    by: str = "margin",
    predictions: Any = None,
    **settings: Unpack[SettingsArguments],
) -> LabelIssues:
    """Rank the training examples of a classifier by how wrong their labels look.

    By self-influence (Koh & Liang 2017, section 5.4), by loss, or by the leave-one-out margin, for
    which the model need not be trained again: to first order it is

        ℓ(x, c) - ℓ(x, y) + (∇ℓ(x, c) - ∇ℓ(x, y))ᵀ (C + λI)⁻¹ ∇ℓ(x, y) / n

    with y the given label and c the most probable other class (not divided by n where the loss is summed). One solve per training example, in
    blocks that share their passes over the data, gives all three. Which is better when, as
    measured, stands in `docs/accuracy.md`.

    Args:
        model: a built, compiled and trained classifier with one output.
        train: as in `influence`; labels are integers, zeros and ones, or one-hot rows.
        by: "margin", "self_influence" or "loss": what to order by.
        predictions: (n, classes) probabilities from models that have not seen the example, as of
            cross-validation. Loss (-log p of the given label), margin (log p of the given label less
            that of the suggested one), `predicted` and `suggested` are then those of these.
        **settings: as in `influence`.

    Returns:
        `LabelIssues`, one entry for each training example.

    Raises:
        ValueError: the labels or outputs are not those of a classifier with one output, or
            `predictions` are no probabilities for them.
        As `inverse_hvp`.
    """
    check_measure(by)
    return ask_label_issues(Case.of(model, train, Settings.of(settings)), by, predictions)


def check_measure(by: Any) -> None:
    """Raise unless `by` is one of `MEASURES`."""
    if not isinstance(by, str) or by not in MEASURES:
        raise ValueError(f"`by` should be one of {list(MEASURES)}. Received: by={by!r}")


def ask_label_issues(case: Case, by: str = "margin", predictions: Any = None) -> LabelIssues:
    """`find_label_issues` for a `Case`."""
    check_measure(by)
    classes, p = _read(case.problem)
    if predictions is not None:
        p = _checked(predictions, p.shape)
    others = np.where(np.arange(p.shape[1]) == classes.given[:, None], -1, p).argmax(1)
    measures = _measured(case, _Relabelled(case.problem, classes, others))
    if predictions is not None:
        log = np.log(np.maximum(p, np.finfo(float).tiny))
        given, other = (
            np.take_along_axis(log, c[:, None], 1)[:, 0] for c in (classes.given, others)
        )
        measures |= {"loss": -given, "margin": given - other}
    order = np.argsort(measures["margin"] if by == "margin" else -measures[by], kind="stable")
    named = {"given": classes.given, "suggested": others, "predicted": p.argmax(1)}
    return LabelIssues(
        index=order,
        **{name: classes.values[column][order] for name, column in named.items()},
        **{name: column[order] for name, column in measures.items()},
        by=by,
    )


def _checked(predictions: Any, shape: tuple[int, int]) -> np.ndarray:
    """A user's predictions as probabilities of this shape."""
    try:
        p = np.asarray(predictions, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`predictions` should be numbers: {error}") from error
    sound = p.shape == shape and bool((p >= 0).all()) and np.allclose(p.sum(1), 1, atol=1e-3)
    if not sound:
        raise ValueError(
            f"`predictions` should be probabilities of shape {shape}, one for each example and "
            f"class, whose rows sum to 1. Received: shape {p.shape}, numbers from {p.min(initial=np.inf):.3g} to "
            f"{p.max(initial=-np.inf):.3g}"
        )
    return p


def _measured(case: Case, relabelled: _Relabelled) -> dict[str, np.ndarray]:
    """Self-influence, loss and leave-one-out margin of each training example."""
    problem, train = case.problem, case.problem.train

    def question(attempt: Attempt) -> tuple[np.ndarray, np.ndarray]:
        own, cross = np.empty(train.n), np.empty(train.n)
        title = f"Self-influence of {train.n} examples"
        others = gradient_blocks(problem, relabelled, name="train")  # type: ignore[arg-type]
        for block in solved_blocks(problem, attempt, train, title=title, name="train"):
            _, other = next(others)
            x = block.solution.x
            for values, gradients in ((own, block.gradients), (cross, other)):
                rows = gradients.astype(np.float64)
                values[block.where] = np.einsum("ij,ij->i", rows, x)
        return own, cross

    own, cross = case.ask(question, train.n)[0]
    # With the loss itself, also where its smooth version stands in for derivatives.
    loss = problem.losses(train)
    # Left out of a sum, an example takes all of its loss with it; out of a mean, a part of n.
    share = 1.0 if problem.facts.sums else 1.0 / train.n
    margin = problem.losses(relabelled) - loss + (cross - own) * share
    return {"self_influence": own, "loss": loss, "margin": margin}


class _Relabelled:
    """The training data with other labels, batch by batch as they are.

    Args:
        problem: the `Problem`.
        classes: its labels.
        others: (n,) the class that each example is to have in place of the given one.
    """

    def __init__(self, problem: Problem, classes: Classes, others: np.ndarray) -> None:
        self._train, self._classes, self._others = problem.train, classes, others
        self.n = problem.n

    def enumerated(self) -> Iterator[tuple[slice, Any]]:
        for where, (x, y, *rest) in self._train.enumerated():
            labels = self._classes.like(self._others[where], y.shape)
            yield where, (x, tf.cast(labels, y.dtype), *rest)

    def __iter__(self) -> Iterator[Any]:
        return (batch for _, batch in self.enumerated())

    def __len__(self) -> int:
        return len(self._train)


def _read(problem: Problem) -> tuple[Classes, np.ndarray]:
    """The labels as classes, and the probabilities (n, classes) that the model gives them."""
    outputs, labels = [], []
    for batch in problem.train:
        with called(problem.model, batch) as ((_, y, _), y_pred):
            flat = tf.nest.flatten(y_pred)
            if len(flat) != 1 or not tf.is_tensor(y):
                raise ValueError(
                    "`model` should be a classifier with one output, and `train` have one label "
                    f"for each example. Received: {len(flat)} outputs"
                )
            outputs.append(flat[0].numpy().reshape(size(batch), -1))
            labels.append(y.numpy())
    found = np.concatenate(outputs)
    classes = read_classes(np.concatenate(labels), found.shape[1])
    if classes is None:
        raise ValueError(
            "`train` should have the labels of a classifier: integers, zeros and ones, or one-hot "
            f"rows, for {found.shape[1]} outputs of the model. For a regression use "
            "`self_influence`. Received labels of shape "
            f"{(problem.n, *labels[0].shape[1:])}"
        )
    return classes, probabilities(found, problem.model, classes)
