"""A curvature factorised once, kept for any number of questions, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence import checksums
from keras_influence.engine.problem import Problem
from keras_influence.errors import StaleError
from keras_influence.questions.attempts import Attempt, first_answer
from keras_influence.questions.blocks import Target
from keras_influence.questions.case import Case
from keras_influence.questions.case_file import read_case, write_case
from keras_influence.questions.groups import ask_group_influence, ask_parameter_influence
from keras_influence.questions.influence import ask_influence
from keras_influence.questions.inputs import ask_input_influence
from keras_influence.questions.label_issues import LabelIssues, ask_label_issues
from keras_influence.questions.plans import plans_for
from keras_influence.questions.products import ask_inverse, ask_product
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.self_influence import ask_self_influence
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.questions.top import TopInfluence, ask_top_influence
from keras_influence.underflow import to_zero

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Right-hand sides that method="auto" counts on: an explainer is for many questions.
_MANY = 1000
# Training examples whose gradients decide between plans.
_PROBE = 8


class Explainer:
    """One model on one training set, with the curvature factorised: any question, many times.

    What a solver can compute before it sees a right-hand side (a Cholesky factor, leading
    eigenvectors, Kronecker factors, a preconditioner) is computed here, and not again. With
    `curvature="auto"` the choice is made here too, by solving for a few training gradients.

    It belongs to the weights that the model had: after further training its methods raise a
    `StaleError`. Nothing of it changes once it is made.

    Args:
        model, train: as in `influence`.
        **settings: as in `influence`; `method="auto"` counts on 1,000 right-hand sides.

    Raises:
        As `inverse_hvp`.
    """

    _case: Case
    _weights: str

    @takes(Settings)
    def __init__(self, model: Any, train: Any, **settings: Unpack[SettingsArguments]) -> None:
        found = Settings.of(settings)
        problem = found.problem(model, train)
        plans = plans_for(problem, found, _MANY)
        nothing = np.zeros((1, problem.parameters.size))

        def prepared(attempt: Attempt) -> object:
            attempt.prepare()
            # A plan that may have to make way for another is asked a real question.
            attempt.solve(_probe(problem) if attempt.plan.definite else nothing)
            return attempt.factor

        factor, plans = first_answer(problem, plans, prepared)
        self._keep(Case(problem, found, plans, factor))

    def _keep(self, case: Case) -> None:
        self._case = case
        self._weights = checksums.fingerprint_of_weights(case.problem.model.weights)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # What it is compiled to cannot be copied, and what it answers for is the one model.
        raise TypeError(
            "an Explainer can be neither pickled nor copied: `explainer.save(path)` writes it to a "
            "file, and `Explainer.load(model, train, path)` reads it."
        )

    @classmethod
    @to_zero
    def load(
        cls,
        model: Any,
        train: Any,
        path: str | os.PathLike[str],
        *,
        class_weight: dict[int, float] | None = None,
        verbose: Any = "auto",
    ) -> Explainer:
        """Read what `save` wrote, for the same model and training data.

        Args:
            model: the model with the weights it had.
            train, class_weight: the training data as they were given to the `Explainer`.
            path: the file, by the name that `save` was given.
            verbose: as in `influence`.

        Returns:
            An `Explainer` with the method, damping, curvature and variables it was made with.

        Raises:
            StaleError: the weights, the data or the loss are not those it was made for.
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or not one that `Explainer.save` wrote.
        """
        explainer = object.__new__(cls)
        explainer._keep(read_case(model, train, path, class_weight, verbose))
        return explainer

    @to_zero
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the factorisation, with a fingerprint of weights, data and options.

        Args:
            path: file name, `.npz` is added if it is missing; its directory must exist. Written
                whole or not at all.

        Raises:
            OSError: the folder of `path` does not exist, or there is a folder of that name.
            StaleError: the model has changed since it was made.
        """
        write_case(path, self._current())

    # ---- what was decided

    @property
    def method(self) -> Any:
        """The solver."""
        return self._case.plans[0].solver

    @property
    def damping(self) -> float:
        """λ."""
        return self._case.plans[0].damping

    @property
    def curvature(self) -> str:
        """ "hessian" or "gauss_newton"."""
        return self._case.plans[0].curvature

    def __repr__(self) -> str:
        problem = self._case.problem
        return (
            f"Explainer({self.method}, curvature={self.curvature!r}, damping={self.damping:g}, "
            f"{problem.parameters.size} parameters, {problem.n} training examples)"
        )

    # ---- questions: each is the function of that name, with the factorisation made already

    @to_zero
    def influence(
        self,
        test: Any,
        *,
        target: Target | None = None,
        store: str | os.PathLike[str] | None = None,
    ) -> InfluenceScores:
        """As `keras_influence.influence`."""
        return ask_influence(self._current(), test, target, store)

    @to_zero
    def top_influence(
        self, test: Any, k: int = 10, *, target: Target | None = None
    ) -> TopInfluence:
        """As `keras_influence.top_influence`."""
        return ask_top_influence(self._current(), test, k, target)

    @to_zero
    def self_influence(self, *, indices: Any = None) -> np.ndarray:
        """As `keras_influence.self_influence`."""
        return ask_self_influence(self._current(), indices)

    @to_zero
    def find_label_issues(self, *, by: str = "margin", predictions: Any = None) -> LabelIssues:
        """As `keras_influence.find_label_issues`."""
        return ask_label_issues(self._current(), by, predictions)

    @to_zero
    def group_influence(
        self,
        test: Any,
        groups: Sequence[Any],
        *,
        order: int = 1,
        target: Target | None = None,
    ) -> np.ndarray:
        """As `keras_influence.group_influence`; order 2 has a system of its own for each group."""
        return ask_group_influence(self._current(), test, groups, order, target)

    @to_zero
    def parameter_influence(self, train_subset: Any, *, order: int = 1) -> list[np.ndarray]:
        """As `keras_influence.parameter_influence`."""
        return ask_parameter_influence(self._current(), train_subset, order)

    @to_zero
    def input_influence(
        self, test: Any, *, indices: Any = None, target: Target | None = None
    ) -> Any:
        """As `keras_influence.input_influence`."""
        return ask_input_influence(self._current(), test, indices, target)

    @to_zero
    def hvp(self, v: Any) -> Any:
        """(C + λI) v for this explainer's `curvature` C and `damping` λ, in the form of `v`."""
        return ask_product(self._current().problem, self.curvature, self.damping, v)

    @to_zero
    def inverse_hvp(self, v: Any, *, x0: Any = None) -> Any:
        """(C + λI)⁻¹ v, in the form of `v`; see `keras_influence.inverse_hvp`."""
        return ask_inverse(self._current(), v, x0)

    @to_zero
    def losses(self, data: Any = None) -> np.ndarray:
        """As `keras_influence.losses`, of the training data if no others are given."""
        problem = self._current().problem
        if data is None:
            return problem.losses(problem.train)
        return problem.losses(problem.read(data, "data"), "data")

    def _current(self) -> Case:
        problem = self._case.problem
        if checksums.fingerprint_of_weights(problem.model.weights) != self._weights:
            raise StaleError("the weights have changed", "this object")
        change = problem.change()
        if change:
            raise StaleError(change, "this object")
        return self._case


def _probe(problem: Problem) -> np.ndarray:
    """Gradients of a few training examples from all over the data, (k, p)."""
    positions = np.unique(np.linspace(0, problem.n - 1, _PROBE).astype(int))
    asked = problem.train.subset(positions)
    return np.concatenate(list(problem.gradients_by_batch(asked, asked)))


# By the names of verbs, like the other questions.
prepare, load_prepared = Explainer, Explainer.load
