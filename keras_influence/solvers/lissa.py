"""LiSSA: a truncated Neumann series over random minibatches (Agarwal, Bullins and Hazan 2017)."""

import itertools

import numpy as np

from keras_influence.errors import DivergenceError
from keras_influence.solvers.base import Solver, check_number, column_norms

_MAX_DOUBLINGS = 8


class LiSSA(Solver):
    """h ← v + h - A_B h / σ over minibatches B; x = h / σ, averaged over `num_samples` runs.

    A_B is the damped curvature of a fresh minibatch, so that the fixed point is
    (H + λI)⁻¹ v with the same λ as in every other solver. Other implementations
    write `(1 - damping) h - H h / scale`, which solves (H + scale · damping · I) x = v.
    Stopping after T steps leaves about the bias of an extra ridge σ / T.

    Args:
        scale: σ, the inverse step size. It must exceed half the largest eigenvalue of
            every A_B. None estimates it by power iteration on eight minibatches, and
            doubles it if the iteration still grows.
        recursion_depth: T, steps in each run.
        num_samples: runs to average; divides the variance, not the bias.
        batch_size: examples in each minibatch.
        seed: of the minibatches; the same seed gives the same answer.
        tol: relative residual above which a warning is given.
    """

    advice = (
        "Raise `recursion_depth` (bias), `batch_size` or `num_samples` (noise), or `damping`; "
        "method='cg' is more accurate whenever a few dozen passes over the data are affordable."
    )

    def __init__(
        self, scale=None, recursion_depth=5000, num_samples=1, batch_size=32, seed=0, tol=0.1
    ):
        check_number("scale", scale, strict=True, optional=True)
        check_number("recursion_depth", recursion_depth, low=1, integer=True)
        check_number("num_samples", num_samples, low=1, integer=True)
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("seed", seed, integer=True)
        check_number("tol", tol, strict=True)
        self.scale = scale
        self.recursion_depth = recursion_depth
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.tol = tol

    def _solve(self, operator, columns, on_step, factor):
        v = np.asarray(columns, operator.dtype)
        scale = self.scale or self._safe_scale(operator)
        samples = operator.samples(self.batch_size, self.seed)
        total = np.zeros(v.shape, np.float64)
        for _ in range(self.num_samples):
            h = self._run(samples, v, scale, on_step)
            for _ in range(0 if self.scale else _MAX_DOUBLINGS):
                if h is not None:
                    break
                scale *= 2
                h = self._run(samples, v, scale, on_step)
            if h is None:
                raise DivergenceError(
                    f"LiSSA diverged with scale={scale:.3g}, which is less than half the largest "
                    "eigenvalue of some minibatch, or the curvature is not positive definite. "
                    "Raise `scale` (or leave it out), `batch_size` or `damping`, or use "
                    "curvature='gauss_newton'."
                )
            total += h / scale
        return total / self.num_samples, self.recursion_depth * self.num_samples, True

    def _run(self, samples, v, scale, on_step):
        """One recursion, or None if it grew without bound."""
        h = v.copy()
        start = column_norms(v)
        for step in range(1, self.recursion_depth + 1):
            update = v - next(samples).matmat(h) / h.dtype.type(scale)
            h = h + update
            if step % 50 == 0 or step == self.recursion_depth:
                # With 0 ≺ A_B ≼ 2σI the norm grows by at most ‖v‖ a step.
                grown = column_norms(h)
                if not np.isfinite(grown).all() or (grown > 2 * (step + 1) * start).any():
                    return None
                on_step(step, float((column_norms(update) / start.clip(1e-300)).max()))
        return h

    def _safe_scale(self, operator):
        """1.2 times the largest eigenvalue over sampled minibatches of the size used."""
        rng = np.random.default_rng(self.seed)
        largest = 0.0
        for sample in itertools.islice(operator.samples(self.batch_size, self.seed + 1), 8):
            w = rng.standard_normal((operator.size, 1)).astype(operator.dtype)
            for _ in range(10):
                w = sample.matmat(w / max(np.linalg.norm(w), 1e-30))
            largest = max(largest, float(np.linalg.norm(w)))
        if not np.isfinite(largest) or largest == 0:
            raise DivergenceError("LiSSA found no finite curvature to set its `scale` from.")
        return 1.2 * largest
