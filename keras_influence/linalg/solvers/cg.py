"""Block conjugate gradients (O'Leary 1980), preconditioned, for many right-hand sides."""

import dataclasses
from typing import Any

import numpy as np

from keras_influence.errors import SolverError
from keras_influence.linalg.arrays import Array, taking_turns
from keras_influence.linalg.factors.contributions import ContributionsFactor
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers import preconditioners
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.directions import Directions
from keras_influence.linalg.solvers.patience import FirstStep, Patience, factors_to_come, waits
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.sweeps import overlaps, row_norms, stepped
from keras_influence.validate import check_number

# Residuals that are so many tolerances are no rounding of the last steps.
_FAR = 3
# Beginnings of the recurrence at most; below what its products can show, more do not help.
_RUNS = 3
# Rows of the sketch that a `Nystrom` is made of.
_RANK = 50


class CG(Solver):
    """Conjugate gradients, for positive definite systems; exact up to `tol`.

    Each iteration costs one pass over the data, shared by all right-hand sides that have not
    converged yet. They share their search directions too: every solution is the best one, in the
    norm of A, in the span of all directions so far, so that many right-hand sides need far
    fewer passes than one. Dependent directions are left out (the breakdown-free form of
    Ji and Li 2017), so equal right-hand sides cost what one costs.

    Args:
        tol: relative residual ‖v - A x‖ / ‖v‖ to reach.
        max_iter: iterations at most.
        preconditioner: what is made once and makes each pass go further: a `Woodbury`, `TwoLevel`, `EKFAC` or
            `Nystrom`; None for the plain algorithm; "nystrom" for a `Nystrom(50)` where one can be
            made, once the first iterations have shown that it is worth its cost; or "auto":
            where all parameters are in layers that are known, a `Woodbury` if it holds a good part of
            what all examples contribute, or a `TwoLevel`; else as "nystrom". Of up to 5,000 parameters these two
            write the matrix itself out, where the iterations that are left would take longer. A `Woodbury` that holds all
            of it gives the solution to begin with: one product shows it, and no iteration is left.
    """

    advice = (
        "Raise `max_iter`, `tol` or `damping` (damping='auto' takes it from the scale of the "
        "curvature, which features and targets that are not scaled make large)."
    )

    def __init__(
        self,
        tol: float = 1e-5,
        max_iter: int = 1000,
        preconditioner: preconditioners.Preconditioner = "auto",
    ) -> None:
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        self.tol: float = tol
        self.max_iter = max_iter
        self.preconditioner = preconditioners.check_preconditioner(preconditioner)

    def factorise(self, curvature: LinearOperator, damping: float) -> Any:
        """The preconditioner's factor; None where it is made only if it turns out to be needed."""
        wait = waits(self.preconditioner, curvature)
        return None if wait else self.prepare(curvature, damping)

    def prepare(self, curvature: LinearOperator, damping: float) -> Any:
        return preconditioners.factorise(self.preconditioner, curvature, damping, rank=_RANK)

    def _solve(self, problem: Problem) -> Answer:
        x, norms = self._start(problem), row_norms(problem.rows)
        x[norms == 0] = 0
        r, iterations = problem.remainder(x), np.zeros(len(norms), int)
        later = self._later(problem, self.tol * norms)
        problem, r = self._iterated(problem, x, r, norms, iterations, later)
        # Of the matrix itself what leads away is as small in its products: there is nothing better to be found.
        known = problem.factor is None or isinstance(problem.factor, DenseFactor)
        if not known and (row_norms(r) > _FAR * self.tol * norms).any():
            r = self._without_factor(problem, x, r, norms, iterations)
        return Answer(x, iterations, remainder=r, factor=problem.factor)

    def _iterated(
        self,
        problem: Problem,
        x: Array,
        r: Array,
        norms: Array,
        iterations: Array,
        later: list[Patience | FirstStep],
    ) -> tuple[Problem, Array]:
        """Go on from x, in place, to the tolerance; the problem with its last factor, and what is left."""
        before, runs = np.full(len(norms), np.inf), 0
        # In float32 the recurrence loses sight of the true residual: begin again from that.
        while runs < _RUNS:
            left = row_norms(r)
            active = np.flatnonzero((left > self.tol * norms) & (left < before))
            if not active.size or iterations.max() >= self.max_iter:
                break
            with taking_turns():
                made = self._run(problem, x, r, active, norms, iterations, later)
            if made is None:
                before, runs = left, runs + 1
            else:
                problem = dataclasses.replace(problem, factor=made)
            r = problem.remainder(x)
        return problem, r

    def _without_factor(
        self, problem: Problem, x: Array, r: Array, norms: Array, iterations: Array
    ) -> Array:
        """The rows that are far from the tolerance by the plain algorithm, in place; what is left.

        Where the damping is lost to rounding beside the largest eigenvalue, a factor's small directions
        are rounding too, and lead away from a solution that has no part in them.
        """
        reached, left, far = x.copy(), r.copy(), row_norms(r) > _FAR * self.tol * norms
        x[far], r[far] = 0, problem.rows[far]
        plain = dataclasses.replace(problem, factor=None)
        alone = CG(self.tol, self.max_iter, None)
        try:
            r = alone._iterated(plain, x, r, norms, iterations, [])[1]
        except SolverError:
            r = plain.remainder(x)
        worse = row_norms(r) > row_norms(left)
        x[worse], r[worse] = reached[worse], left[worse]
        return r

    def _later(self, problem: Problem, targets: Array) -> list[Patience | FirstStep]:
        """The factors that may yet be made, in their order."""
        if isinstance(problem.factor, DenseFactor):
            return []
        about = problem.curvature, problem.system.damping

        def prepare() -> Any:
            return self.prepare(*about)

        make = prepare if problem.factor is None else None
        return factors_to_come(self.preconditioner, *about, targets, make, _RANK)

    def _start(self, problem: Problem) -> Array:
        """Where to begin; with all contributions at hand that is the solution but for rounding."""
        x, factor = problem.start.copy(), problem.factor
        if isinstance(factor, ContributionsFactor) and factor.whole and not x.any():
            x[:] = factor.refined(problem.rows.astype(problem.system.dtype, copy=False))
        return x

    def _run(
        self,
        problem: Problem,
        x: Array,
        r: Array,
        active: Array,
        norms: Array,
        iterations: Array,
        later: list[Patience | FirstStep],
    ) -> Any:
        """The recurrence from x with the residual r, for the rows in `active`; x in place.

        Args:
            later: factors that may yet be made; the first is taken out where it is.

        Returns:
            The factor to go on with, where there was no patience to the end, else None.
        """
        block, dtype = None, problem.system.dtype
        r = r[active].astype(dtype, copy=False)
        # A little below `tol`: in float32 the recurrence drifts from the true residual.
        target = 0.9 * self.tol * norms
        while active.size and iterations.max() < self.max_iter:
            if later and later[0].is_over(row_norms(r), active):
                made = later.pop(0).make()
                if made is not None:
                    return made
            z = problem.factor.precondition(r) if problem.factor else r.copy()
            block = Directions(problem, z.astype(dtype, copy=False), block)
            change = block.coefficients(overlaps(block.p, r)).T.astype(dtype)
            left = stepped(x, r, change, block.p, block.q, active)
            iterations[active] += 1
            problem.on_step(int(iterations.max()), float((left / norms[active]).max()))
            going = left > target[active]
            if not going.all():
                active, r = active[going], r[going]
        return None
