"""What a question is put to: a problem, its settings, and what was decided for it before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.linalg.solvers import Solution
from keras_influence.questions.attempts import Attempt, first_answer
from keras_influence.questions.plan import Plan
from keras_influence.questions.plans import plans_for
from keras_influence.questions.settings import Settings

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem with settings, of which any number of questions can be asked.

    Attributes:
        problem: the `Problem`.
        settings: the `Settings`.
        plans: to be tried in turn; none if each question is to make its own.
        factor: what was computed for the system of the first plan, if anything.
    """

    problem: Problem
    settings: Settings
    plans: tuple[Plan, ...] = ()
    factor: object = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, model: Any, train: Any, settings: Settings) -> Case:
        """The case of a model and its training data, nothing decided yet."""
        return cls(settings.problem(model, train), settings)

    def ask(self, question: Callable[[Attempt], Answer], count: int) -> tuple[Answer, Plan]:
        """The answer to a question with `count` right-hand sides, and the plan that gave it."""
        plans = self.plans or plans_for(self.problem, self.settings, count)
        answer, (plan, *_) = first_answer(self.problem, plans, question, self.factor)
        return answer, plan

    def solve(self, rows: np.ndarray, x0: np.ndarray | None = None) -> tuple[Solution, Plan]:
        """The solutions for the rows (k, p), and the plan that gave them."""
        return self.ask(lambda attempt: attempt.solve(rows, x0=x0), len(rows))
