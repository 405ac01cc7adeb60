"""Plans at work, tried in turn around a whole question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from keras_influence.engine.data.held import Batches
from keras_influence.engine.problem import Problem
from keras_influence.errors import (
    CurvatureWarning,
    NegativeCurvatureError,
    SingularError,
    SolverError,
    UndefinedCurvatureError,
    warn,
)
from keras_influence.linalg.arrays import OnStep
from keras_influence.linalg.operators import Damped, LinearOperator
from keras_influence.linalg.solvers import Solution
from keras_influence.questions import kept
from keras_influence.questions.plan import Plan

Answer = TypeVar("Answer")


class Attempt:
    """One plan at work: what is computed once for its system serves all its solves.

    Args:
        problem: the `Problem`.
        plans: those to be tried from here on; the first of them is at work.
        factor: what was computed for the system before, if anything.

    Attributes:
        plan: the one at work.
        plans: the same, and those that would follow it.
        factor: what has been computed for the system so far.
    """

    def __init__(self, problem: Problem, plans: tuple[Plan, ...], factor: object = None) -> None:
        plan, self.plans = plans[0], plans
        self.plan = plan
        self.factor = factor
        self._problem = problem
        self._facts = problem.facts if plan.added else problem.facts.without_added()
        self._curvature = self._curvature_without(None)

    def prepare(self) -> None:
        """Compute what serves all solves, also what a single one might do without."""
        if self.factor is None:
            self.factor = self.plan.solver.prepare(self._curvature, self.plan.damping)

    def solve(
        self,
        rows: np.ndarray,
        *,
        group: Batches | None = None,
        x0: np.ndarray | None = None,
        on_step: OnStep | None = None,
    ) -> Solution:
        """Solve (C + λI) x = v for each row v.

        Args:
            rows: (k, p) right-hand sides.
            group: training examples to take out of C, n unchanged.
            x0: (k, p) to start from.
            on_step: called as `on_step(iteration, residual)`; None shows a bar of its own.

        Returns:
            A `Solution` with `x` of shape (k, p).

        Raises:
            SolverError: there is no answer, or the plan needs a definite system and this is none.
        """
        plan, curvature = self.plan, self._curvature
        if group is not None:
            curvature = self._curvature_without(group)
        step = self._problem.progress.stage(
            f"Solve for {len(rows)} right-hand sides with {plan.solver}"
        )
        solution = plan.solver.solve(
            Damped(curvature, plan.damping),
            rows,
            x0=x0,
            factor=self.factor if group is None else None,
            on_step=on_step or (lambda i, residual: step(i, residual=residual)),
        )
        step.close()
        if not solution.positive_definite:
            self._not_definite()
        if group is None:
            self.factor = solution.factor
        return solution

    def _not_definite(self) -> None:
        plan = self.plan
        finding = f"{plan.name} plus damping has negative eigenvalues"
        if plan.definite:
            raise SolverError(finding)
        other = "; curvature='gauss_newton' is never negative for convex losses"
        warn(
            f"{finding}: the weights are at no minimum, and what {plan.solver} answers is a saddle's, which "
            "need not be what training without an example leads to. Train on, or raise `damping`"
            f"{other if plan.curvature == 'hessian' and not plan.doubtful else ''}.",
            CurvatureWarning,
        )

    def _curvature_without(self, group: Batches | None) -> LinearOperator:
        """C, less what a group of training examples contributes."""
        plan, facts = self.plan, self._facts
        found: LinearOperator = self._problem.curvature(
            plan.curvature, group, facts, doubtful=plan.doubtful
        )
        return found


def first_answer(
    problem: Problem,
    plans: tuple[Plan, ...],
    question: Callable[[Attempt], Answer],
    factor: object = None,
) -> tuple[Answer, tuple[Plan, ...]]:
    """Ask a whole question by one plan after the other, until one has an answer.

    What is computed for its system is kept for the next question; see `kept`.

    Args:
        problem: the `Problem`.
        plans: in the order to try them.
        question: a function of an `Attempt`. It may be called again from its start.
        factor: what was computed for the system of the first plan before.

    Returns:
        The answer, and the plans from the one on that gave it, the reason for it said there.

    Raises:
        SolverError: that of the last plan.
    """
    plan, *others = plans
    system = None if factor is not None else kept.System(problem, plan)
    try:
        attempt = Attempt(problem, plans, factor if system is None else system.recall())
        answer = question(attempt)
    except SolverError as error:
        undefined = isinstance(error, UndefinedCurvatureError)
        if undefined:
            others = [other for other in others if other.curvature != plan.curvature]
        if not others and plan.doubtful and isinstance(error, NegativeCurvatureError):
            raise error.where_gauss_newton_was_tried() from error
        if not others or isinstance(error, SingularError):
            raise
        why = error.finding
    else:
        if system is not None:
            system.keep(attempt.factor)
        return answer, plans
    following = others[0]
    name = following.name
    advice = f"Choose curvature={following.curvature!r}" if undefined else following.advice
    warn(
        f"curvature='auto' uses {name}: {why}. {advice} to be without this warning.",
        CurvatureWarning,
    )
    reason = "; ".join(filter(None, [following.reason, f"curvature: {name}, because {why}"]))
    other = following.curvature != plan.curvature
    following = dataclasses.replace(following, reason=reason, doubtful=other)
    return first_answer(problem, (following, *others[1:]), question)
