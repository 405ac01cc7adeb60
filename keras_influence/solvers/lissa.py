"""LiSSA: a truncated Neumann series over random minibatches (Agarwal, Bullins and Hazan 2017)."""

import itertools

import numpy as np

from keras_influence.errors import DivergenceError
from keras_influence.solvers import preconditioners
from keras_influence.solvers.base import Answer, Solver, check_number, column_norms

_MAX_DOUBLINGS = 12
# Heavy-ball momentum, and a step that is stable with it: (1 - 0.9) · 4 / σ.
_MOMENTUM = 0.9
_STEP = 0.4


class LiSSA(Solver):
    """h ← v + h - A_B h / σ over minibatches B; x = h / σ, averaged over `num_samples` runs.

    A_B is the damped curvature of a fresh minibatch, so that the fixed point is
    (H + λI)⁻¹ v with the same λ as in every other solver. Other implementations
    write `(1 - damping) h - H h / scale`, which solves (H + scale · damping · I) x = v.

    With a `recursion_depth` T it is exactly that plain recurrence. Stopping after T steps
    leaves about the bias of an extra ridge σ / T.

    Without one it tunes itself: short recurrences, each for what is left of v. After each,
    one pass over the full data measures the residual v - A x, which is the right-hand side
    of the next; so the noise of the minibatches, in proportion to the correction, dies out
    (the variance reduction of Johnson and Zhang 2013). A correction that made things worse
    is thrown away and σ doubled; one that made slow progress is followed by a longer one.

    Args:
        scale: σ, the inverse step size. It must exceed half the largest eigenvalue of
            every A_B. None estimates it by power iteration on eight minibatches, and
            doubles it if the iteration still grows.
        recursion_depth: T, steps in each run. None tunes itself until `tol`.
        num_samples: runs to average; divides the variance, not the bias. Only with a
            `recursion_depth`.
        batch_size: examples in each minibatch.
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

    def __init__(
        self,
        scale=None,
        recursion_depth=None,
        num_samples=1,
        batch_size=32,
        seed=0,
        tol=1e-3,
        max_passes=500,
        preconditioner="auto",
    ):
        check_number("scale", scale, strict=True, optional=True)
        check_number("recursion_depth", recursion_depth, low=1, integer=True, optional=True)
        check_number("num_samples", num_samples, low=1, integer=True)
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("seed", seed, integer=True)
        check_number("tol", tol, strict=True)
        check_number("max_passes", max_passes, low=1)
        self.preconditioner = preconditioners.check_preconditioner(preconditioner)
        self.scale = scale
        self.recursion_depth = recursion_depth
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.tol = tol
        self.max_passes = max_passes

    def factorise(self, operator):
        if self.recursion_depth is not None:
            return None
        return preconditioners.factorise(self.preconditioner, operator, rank=20)

    def _solve(self, problem):
        scale = self.scale or self._safe_scale(problem)
        samples = problem.operator.samples(self.batch_size, self.seed)
        if self.recursion_depth is None:
            return self._refined(problem, samples, scale)
        return self._plain(problem, samples, scale)

    # ---- the plain recurrence

    def _plain(self, problem, samples, scale):
        total = np.zeros_like(problem.columns)
        for _ in range(self.num_samples):
            x = None
            for _ in range(1 if self.scale else _MAX_DOUBLINGS):
                x = self._run(problem, samples, scale)
                if x is not None:
                    break
                scale *= 2
            if x is None:
                raise self._diverged(scale)
            total += x
        steps = self.recursion_depth * self.num_samples
        return Answer(total / self.num_samples, steps, details=self._details(scale, steps))

    def _run(self, problem, samples, scale):
        """One recurrence from h = v, or σ x0 if there is one; None if it grew without bound."""
        dtype = problem.operator.dtype
        v = problem.columns.astype(dtype)
        h = (problem.start * scale).astype(dtype) if problem.start.any() else v.copy()
        # With 0 ≼ A_B ≼ 2σI the norm grows by at most ‖v‖ a step.
        first, growth = column_norms(h), column_norms(v)
        for step in range(1, self.recursion_depth + 1):
            update = v - next(samples).matmat(h) / dtype.type(scale)
            h = h + update
            if step % 50 == 0 or step == self.recursion_depth:
                if not (column_norms(h) <= 2 * (first + (step + 1) * growth)).all():
                    return None
                left = column_norms(update) / growth.clip(1e-300)
                problem.on_step(step, float(left.max()))
        return h.astype(np.float64) / scale

    # ---- the self-tuning one

    def _refined(self, problem, samples, scale):
        x = problem.start.copy()
        norms = column_norms(problem.columns).clip(1e-300)
        r = problem.columns - problem.product(x) if x.any() else problem.columns.copy()
        left = column_norms(r) / norms
        share = next(samples).share
        depth = max(10, round(1 / share))
        steps, doublings = 0, 0
        while left.max() > 0.9 * self.tol and problem.operator.passes < self.max_passes:
            depth = min(depth, 1 + round((self.max_passes - problem.operator.passes) / share))
            correction = self._correction(problem, samples, r, scale, depth)
            steps += depth
            better = None
            if correction is not None:
                trial = x + correction
                residual = problem.columns - problem.product(trial)
                better = column_norms(residual) / norms
            if better is None or not (better.max() < left.max()):
                doublings += 1
                if doublings > _MAX_DOUBLINGS:
                    break
                scale *= 2
                continue
            if better.max() > 0.3 * left.max():
                depth *= 2
            x, r, left = trial, residual, better
            problem.on_step(steps, left.max())
        if left.max() >= 1 and not x.any():
            raise self._diverged(scale)
        return Answer(x, steps, details=self._details(scale, steps))

    def _correction(self, problem, samples, r, scale, depth):
        """About A⁻¹ r by `depth` steps with momentum, averaged over the last quarter; or None."""
        dtype = problem.operator.dtype
        r, d = r.astype(dtype), np.zeros(r.shape, dtype)
        velocity, tail = np.zeros_like(d), np.zeros(r.shape, np.float64)
        last = max(1, depth // 4)
        for step in range(depth):
            pull = self._preconditioned(problem, r - next(samples).matmat(d)) / scale
            velocity = (_MOMENTUM * velocity + _STEP * pull).astype(dtype)
            d = d + velocity
            if step >= depth - last:
                tail += d
            if step % 20 == 19 and not np.isfinite(d).all():
                return None
        return tail / last if np.isfinite(tail).all() else None

    # ---- what both share

    def _preconditioned(self, problem, columns):
        return columns if problem.factor is None else problem.factor.precondition(columns)

    def _details(self, scale, steps):
        return {
            "scale": float(scale),
            "batch_size": self.batch_size,
            "extra_ridge": float(scale * self.num_samples / max(steps, 1)),
        }

    def _diverged(self, scale):
        return DivergenceError(
            f"LiSSA diverged with scale={scale:.3g}, which is less than half the largest "
            "eigenvalue of some minibatch, or the curvature is not positive definite. "
            "Raise `scale` (or leave it out), `batch_size` or `damping`, or use "
            "curvature='gauss_newton'."
        )

    def _safe_scale(self, problem):
        """1.2 times the largest eigenvalue over sampled minibatches of the size used."""
        operator, largest = problem.operator, 0.0
        rng = np.random.default_rng(self.seed)
        for sample in itertools.islice(operator.samples(self.batch_size, self.seed + 1), 8):
            w = rng.standard_normal((operator.size, 1))
            for _ in range(10):
                w = (w / max(np.linalg.norm(w), 1e-30)).astype(operator.dtype)
                w = self._preconditioned(problem, sample.matmat(w))
            largest = max(largest, float(np.linalg.norm(w)))
        if not np.isfinite(largest) or largest == 0:
            raise DivergenceError("LiSSA found no finite curvature to set its `scale` from.")
        return 1.2 * largest
