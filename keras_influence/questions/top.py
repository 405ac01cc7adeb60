"""The strongest proponents and opponents of each test example, without all scores at once."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import Target, read_test, solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.evidence import Evidence, described
from keras_influence.questions.ranking import Ranking, Strongest, joined
from keras_influence.questions.result_file import read_result, write_result
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.questions.words import about_line, evidence_lines
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SIDES = ("proponents", "opponents")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopInfluence:
    """The training examples that helped and harmed each test example most.

    Attributes:
        proponents: a `Ranking`, `indices` and `values` of shape (n_test, k): the largest scores,
            strongest first, as `InfluenceScores.top` gives them.
        opponents: the same for the smallest scores, as `InfluenceScores.bottom` gives them.
        n_train: number of training examples.
        residual, iterations, converged, solver, curvature, damping, passes, details, reason,
            target, parameters: as in `InfluenceScores`.
    """

    proponents: Ranking
    opponents: Ranking
    n_train: int
    residual: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    solver: dict[str, Any]
    curvature: str
    damping: float
    passes: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""
    target: str = "test loss"
    parameters: tuple[str, ...] = ()

    @property
    def n_test(self) -> int:
        return len(self.residual)

    def __repr__(self) -> str:
        k = self.proponents.indices.shape[1]
        best, worst = self.proponents.values[:, 0].argmax(), self.opponents.values[:, 0].argmin()
        unit = "the loss" if self.target == "test loss" else f"`{self.target}`"
        return "\n".join(
            [
                f"TopInfluence: {k} of {self.n_train} training examples for each of {self.n_test} "
                "test examples",
                f"  values        predicted change of {self.target} i if a training example were",
                f"                left out, in units of {unit}",
                f"  proponents    the largest; strongest: {_entry(self.proponents, best)}",
                f"  opponents     the smallest; strongest: {_entry(self.opponents, worst)}",
                about_line(self),
                *evidence_lines(self),
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one `.npz` file, without pickle.

        Args:
            path: file name; `.npz` is added if it is missing.

        Raises:
            OSError: the folder of `path` does not exist, or there is a folder of that name.
        """
        arrays: dict[str, np.ndarray] = {}
        for side in _SIDES:
            ranking = getattr(self, side)
            arrays |= {f"{side}_indices": ranking.indices, f"{side}_values": ranking.values}
        write_result(path, self, arrays, ["n_train"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TopInfluence:
        """Read what `save` wrote.

        Args:
            path: the name that `save` was given.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or `TopInfluence.save` did not write it.
        """
        names = [f"{side}_{part}" for side in _SIDES for part in ("indices", "values")]
        evidence, arrays = read_result(path, "TopInfluence.save", names, ["n_train"])
        top, bottom = (Ranking(arrays[f"{s}_indices"], arrays[f"{s}_values"]) for s in _SIDES)
        return cls(top, bottom, **evidence)


@takes(Settings)
def top_influence(
    model: Any,
    test: Any,
    train: Any,
    k: int = 10,
    *,
    target: Target | None = None,
    **settings: Unpack[SettingsArguments],
) -> TopInfluence:
    """The k strongest proponents and opponents of each test example.

    What `influence(...).top(k)` and `.bottom(k)` give, without an array of all scores: memory
    does not grow with the number of training examples. Of equal scores the example that comes
    first in the training data is the stronger.

    Args:
        model, test, train, target: as in `influence`.
        k: how many of each; all, if there are fewer.
        **settings: as in `influence`.

    Returns:
        A `TopInfluence` with `proponents` and `opponents`.

    Raises:
        As `inverse_hvp`.
    """
    check_number("k", k, low=1, integer=True)
    return ask_top_influence(Case.of(model, train, Settings.of(settings)), test, k, target)


def ask_top_influence(
    case: Case, test: Any, k: int = 10, target: Target | None = None
) -> TopInfluence:
    """`top_influence` for a `Case`."""
    check_number("k", k, low=1, integer=True)
    problem = case.problem
    examples = read_test(problem, test, target)

    def question(attempt: Attempt) -> TopInfluence:
        evidence, proponents, opponents = Evidence(examples.n), [], []
        title = f"Strongest influence on {examples.n} test examples"
        for block in solved_blocks(problem, attempt, examples, target, title=title):
            evidence.add(block)
            largest, smallest = Strongest(k, proponents=True), Strongest(k, proponents=False)
            for _, part in block.scores():
                largest.add(part)
                smallest.add(part)
            proponents.append(largest.ranking)
            opponents.append(smallest.ranking)
        return TopInfluence(
            joined(proponents),
            joined(opponents),
            problem.n,
            **vars(evidence),
            **described(problem, attempt.plan, target),
        )

    return case.ask(question, examples.n)[0]


def _entry(ranking: Ranking, row: Any) -> str:
    index, value = ranking.indices[row, 0], ranking.values[row, 0]
    return f"{index} for test example {row}, {value:+.3g}"
