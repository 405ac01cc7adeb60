"""LiSSA: a truncated Neumann series over random minibatches (Agarwal, Bullins and Hazan 2017)."""

import itertools
from typing import Any, Optional

import numpy as np

from keras_influence.errors import DivergenceError
from keras_influence.linalg.arrays import Array, taking_turns
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers import preconditioners, recurrences
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.solvers.recurrences import Map, Samples
from keras_influence.linalg.solvers.rounding import not_definite
from keras_influence.linalg.sweeps import row_norms
from keras_influence.validate import check_number

_MAX_DOUBLINGS = 12
# A run of the self-tuning recurrence sees each example this often at most.
_LONGEST = 4


class LiSSA(Solver):
    """h ← v + h - A_B h / σ over minibatches B; x = h / σ, averaged over `num_samples` runs.

    A_B is the damped curvature of a fresh minibatch, so that the fixed point is
    (H + λI)⁻¹ v with the same λ as in every other solver. Other implementations
    write `(1 - damping) h - H h / scale`, which solves (H + scale · damping · I) x = v.

    With a `recursion_depth` T it is exactly that plain recurrence. Stopping after T steps
    leaves about the bias of an extra ridge σ / T.

    Without one it tunes itself: short recurrences, each for what is left of v. One pass over
    the full data then gives A times the correction, and with it the correction's best length,
    what makes it conjugate to the one before, and the exact residual, which is the right-hand
    side of the next: flexible conjugate gradients (Notay 2000) with the recurrence for a
    preconditioner. So the error falls from run to run whatever σ is, and the noise of the
    minibatches, in proportion to the correction, dies out. A run that made slow progress is
    followed by a longer one; σ is doubled when noise or growth made a correction too long.

    Args:
        scale: σ, the inverse step size. It must exceed half the largest eigenvalue of
            every A_B. None estimates it by power iteration on up to eight minibatches, and
            doubles it if the iteration still grows.
        recursion_depth: T, steps in each run. None tunes itself until `tol`.
        num_samples: runs to average; divides the variance, not the bias. Only with a
            `recursion_depth`.
        batch_size: examples in each minibatch. None takes a sixteenth of the data, but at
            least 32 and at most 256: below that a step costs its overhead, not its examples.
        seed: of the minibatches; the same seed gives the same answer.
        tol: relative residual to reach, or, with a `recursion_depth`, to warn above.
        max_passes: passes over the data at most. Only without a `recursion_depth`.
        preconditioner: a `Nystrom` that is made once, None for none, or "auto" for a
            `Nystrom(rank=20)` where the curvature allows one. Only without a
            `recursion_depth`.
    """

    advice = (
        "Raise `max_passes` or `recursion_depth` (bias), `batch_size` or `num_samples` (noise), or "
        "`damping`; method='cg' is better whenever a few dozen passes over the data are affordable."
    )

    _knobs = "`scale` (or leave it out), `batch_size` or `damping`"

    def __init__(
        self,
        scale: float | None = None,
        recursion_depth: int | None = None,
        num_samples: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
        tol: float = 1e-5,
        max_passes: float = 500,
        preconditioner: preconditioners.Preconditioner = "auto",
    ) -> None:
        check_number("scale", scale, strict=True, optional=True)
        check_number("recursion_depth", recursion_depth, low=1, integer=True, optional=True)
        check_number("num_samples", num_samples, low=1, integer=True)
        check_number("batch_size", batch_size, low=1, integer=True, optional=True)
        check_number("seed", seed, integer=True)
        check_number("tol", tol, strict=True)
        check_number("max_passes", max_passes, low=1)
        self.preconditioner = preconditioners.check_preconditioner(preconditioner)
        self.scale = scale
        self.recursion_depth = recursion_depth
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.tol: float = tol
        self.max_passes = max_passes

    def factorise(self, curvature: LinearOperator, damping: float) -> Any:
        if self.recursion_depth is not None:
            return None
        return preconditioners.factorise(self.preconditioner, curvature, damping, rank=20)

    def _solve(self, problem: Problem) -> Answer:
        batch_size = self.batch_size or _batch_size(problem.system)
        precondition = _preconditioner(problem)
        scale = self.scale or self._safe_scale(problem.system, precondition, batch_size)
        samples = problem.system.samples(batch_size, self.seed)
        with taking_turns():
            if self.recursion_depth is None:
                x, steps, used = self._refined(problem, samples, scale, precondition)
            else:
                x, steps, used = self._plain(problem, samples, scale, self.recursion_depth)
        # What refinement leaves is not the bias of a cut series: the residual tells it.
        extra_ridge = used / self.recursion_depth if self.recursion_depth else 0.0
        details = {"scale": used, "batch_size": batch_size, "extra_ridge": extra_ridge}
        return Answer(x, steps, details={k: float(v) for k, v in details.items()})

    def _diverged(self, scale: float) -> DivergenceError:
        return DivergenceError(
            f"{type(self).__name__} diverged with scale={scale:.3g}, which is less than half the largest "
            "eigenvalue of some minibatch, or the curvature is not positive definite. "
            f"Raise {self._knobs}, or use curvature='gauss_newton'."
        )

    # ---- the plain recurrence

    def _plain(
        self, problem: Problem, samples: Samples, scale: float, depth: int
    ) -> tuple[Array, int, float]:
        total = np.zeros_like(problem.rows)
        for _ in range(self.num_samples):
            x = recurrences.plain(problem, samples, scale, depth)
            for _ in range(0 if self.scale else _MAX_DOUBLINGS):
                if x is not None:
                    break
                scale *= 2
                x = recurrences.plain(problem, samples, scale, depth)
            if x is None:
                raise self._diverged(scale)
            total += x
        return total / self.num_samples, depth * self.num_samples, scale

    # ---- the self-tuning one

    def _refined(
        self, problem: Problem, samples: Samples, scale: float, precondition: Map
    ) -> tuple[Array, int, float]:
        x, norms = problem.start.copy(), row_norms(problem.rows).clip(1e-300)
        r = problem.remainder(x)
        left, share = row_norms(r) / norms, next(samples).share
        depth, steps, doublings, before = max(10, round(1 / share)), 0, 0, None
        while left.max() > 0.9 * self.tol and problem.passes < self.max_passes:
            depth = min(depth, 1 + round((self.max_passes - problem.passes) / share))
            correction = recurrences.with_momentum(r, samples, scale, precondition, depth)
            steps += depth
            if correction is None:
                doublings += 1
                if doublings > _MAX_DOUBLINGS:
                    raise self._diverged(scale)
                scale *= 2
                continue
            image = problem.product(correction)
            before = _Direction(correction, image, before, type(self).__name__)
            length = before.length(r)
            x += length * before.rows
            r -= length * before.image
            previous, left = left.max(), row_norms(r) / norms
            if left.max() > 0.3 * previous:
                scale *= 2 if length.min() < 0.5 else 1
                depth *= 2 if depth * share < _LONGEST else 1
            problem.on_step(steps, float(left.max()))
        return x, steps, scale

    def _safe_scale(self, system: LinearOperator, precondition: Map, batch_size: int) -> float:
        """1.2 times the largest eigenvalue over sampled minibatches of the size used."""
        largest, samples = 0.0, system.samples(batch_size, self.seed + 1)
        rng = np.random.default_rng(self.seed)
        first = next(samples)
        others = min(8, round(1 / first.share)) - 1  # As many as there are different ones.
        for sample in (first, *itertools.islice(samples, others)):
            w: Array = rng.standard_normal((1, system.size))
            for _ in range(10):
                w = (w / max(float(np.linalg.norm(w)), 1e-30)).astype(system.dtype)
                w = precondition(sample.matmat(w))
            largest = max(largest, float(np.linalg.norm(w)))
        if not np.isfinite(largest) or largest == 0:
            raise DivergenceError(f"{type(self).__name__} found no finite curvature to work with.")
        return 1.2 * largest


def _batch_size(system: LinearOperator) -> int:
    """A sixteenth of the examples, within 32 and 256."""
    share = next(system.samples(32, 0)).share
    return int(np.clip(2 / share, 32, 256))


def _preconditioner(problem: Problem) -> Map:
    """The factor's product in the operator's own precision, which is what the steps cost in."""
    if problem.factor is None:
        return lambda rows: rows
    return problem.factor.astype(problem.system.dtype).precondition


class _Direction:
    """A correction with its image under A, made conjugate to the one before it.

    Args:
        rows, image: the correction and its image.
        before: the one before it, or None.
        solver: what messages call the solver.

    Raises:
        NegativeCurvatureError, SingularError: A is not positive definite along it.
    """

    rows: Array
    image: Array
    energy: Array

    def __init__(
        self, rows: Array, image: Array, before: Optional["_Direction"], solver: str
    ) -> None:
        if before is not None:
            overlap = _dots(before.image, rows) / before.energy
            rows = rows - overlap * before.rows
            image = image - overlap * before.image
        self.rows, self.image, self.energy = rows, image, _dots(rows, image)
        if (self.energy < 0).any():
            squares = _dots(rows, rows).clip(1e-300)
            quotients, largest = self.energy / squares, (_dots(image, image) / squares).max() ** 0.5
            raise not_definite(quotients.min(), largest, rows.dtype, solver)
        self.energy[self.energy == 0] = 1  # A row of zeros, which stays zero.

    def length(self, r: Array) -> Array:
        """The multiple of each row that brings x nearest to A⁻¹ v in the norm of A, (k, 1)."""
        return _dots(self.rows, r) / self.energy


def _dots(a: Array, b: Array) -> Array:
    """The inner product of each pair of rows, (k, 1)."""
    return np.einsum("ij,ij->i", a, b)[:, None]
