"""Ways to an answer: a curvature, a solver and a damping, tried in turn around a whole question."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from keras_influence.engine.curvature.automatic import automatic_damping
from keras_influence.engine.data.held import Batches
from keras_influence.engine.problem import Problem
from keras_influence.errors import (
    CurvatureWarning,
    SingularError,
    SolverError,
    UndefinedCurvatureError,
    warn,
)
from keras_influence.linalg import solvers
from keras_influence.linalg.arrays import OnStep
from keras_influence.linalg.operators import Damped
from keras_influence.linalg.solvers import Solution, Solver
from keras_influence.questions import kept
from keras_influence.questions.settings import Settings
from keras_influence.questions.training_time import training_damping

# What curvature="auto" tries, in this order.
AUTOMATIC = ("gauss_newton", "hessian")

_NAMES = {"hessian": "the Hessian", "gauss_newton": "Gauss-Newton"}

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to an answer.

    Attributes:
        curvature: "hessian" or "gauss_newton".
        solver: the solver.
        damping: λ.
        reason: why it is this, where that was chosen automatically.
        definite: whether the plan fails where curvature and damping together have negative
            eigenvalues, though the solver could go on.
        doubtful: whether its curvature stands in for another, and may well have negative eigenvalues.
        added: whether the Hessian of what layers add by `add_loss` is in the curvature. It may be
            negative where Gauss-Newton of the loss is not.
    """

    curvature: str
    solver: Solver
    damping: float
    reason: str = ""
    definite: bool = False
    doubtful: bool = False
    added: bool = True

    @property
    def name(self) -> str:
        """The curvature, in words."""
        without = "" if self.added else " without what layers add by add_loss"
        return _NAMES[self.curvature] + without

    @property
    def advice(self) -> str:
        """How to ask for this plan, or for the one before it."""
        ask = f"Choose curvature={self.curvature!r}, or raise" if self.added else "Raise"
        return f"{ask} `damping`,"


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
        self._curvature = problem.curvature(plan.curvature, facts=self._facts)

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
            curvature = self._problem.curvature(plan.curvature, group, self._facts)
        curvature.doubtful = plan.doubtful
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
        if plan.definite and not solution.positive_definite:
            raise SolverError(f"{plan.name} plus damping has negative eigenvalues")
        if group is None:
            self.factor = solution.factor
        return solution


def plans_for(problem: Problem, settings: Settings, count: int) -> tuple[Plan, ...]:
    """The plans for a question with `count` right-hand sides, in the order to try them."""
    damping, about_damping = damping_for(problem, settings)
    solver, about_solver = _solver(problem, settings, count, damping)
    names = _curvatures(settings, solver)
    reason = "; ".join(filter(None, [about_damping, about_solver]))
    plans = [Plan(name, solver, damping, reason, definite=True) for name in names]
    if settings.curvature == "auto" and problem.facts.adds:
        plans[1:1] = [dataclasses.replace(plans[0], added=False)]
    return (*plans[:-1], dataclasses.replace(plans[-1], definite=False))


def damping_for(problem: Problem, settings: Settings) -> tuple[float, str]:
    """λ, and the reason where it was chosen automatically."""
    if settings.damping == "training":
        return training_damping(problem.model)
    if settings.damping != "auto":
        return float(settings.damping), ""
    if settings.curvature == "hessian":
        return automatic_damping(problem.curvature("hessian"), definite=False)
    try:
        return automatic_damping(problem.curvature("gauss_newton"), definite=True)
    except UndefinedCurvatureError:
        if settings.curvature != "auto":
            raise
    return automatic_damping(problem.curvature("hessian"), definite=False)


def _solver(problem: Problem, settings: Settings, count: int, damping: float) -> tuple[Solver, str]:
    solver = settings.solver
    if isinstance(solver, solvers.Auto):
        about = problem.parameters.size, problem.n, count
        return solver.choose(*about, damping=damping, **problem.costs())
    return solver, ""


def _curvatures(settings: Settings, solver: Solver) -> tuple[str, ...]:
    if settings.curvature != "auto":
        return (settings.curvature,)
    return AUTOMATIC if solver.approximates is None else (solver.approximates,)


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
        if isinstance(error, UndefinedCurvatureError):
            others = [other for other in others if other.curvature != plan.curvature]
        if not others or isinstance(error, SingularError):
            raise
        why = error.finding
    else:
        if system is not None:
            system.keep(attempt.factor)
        return answer, plans
    following = others[0]
    name = following.name
    warn(
        f"curvature='auto' uses {name}: {why}. {following.advice} to be without this warning.",
        CurvatureWarning,
    )
    reason = "; ".join(filter(None, [following.reason, f"curvature: {name}, because {why}"]))
    other = following.curvature != plan.curvature
    following = dataclasses.replace(following, reason=reason, doubtful=other)
    return first_answer(problem, (following, *others[1:]), question)
