"""Which ways to an answer there are for a question, in the order to try them."""

from __future__ import annotations

import dataclasses

from keras_influence.engine.curvature.automatic import automatic_damping
from keras_influence.engine.problem import Problem
from keras_influence.errors import UndefinedCurvatureError
from keras_influence.linalg import solvers
from keras_influence.linalg.solvers import Solver
from keras_influence.questions.plan import Plan
from keras_influence.questions.settings import Settings
from keras_influence.questions.training_time import training_damping

# What curvature="auto" tries, in this order.
AUTOMATIC = ("gauss_newton", "hessian")


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
        return training_damping(problem.model, problem.facts.sums)
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
