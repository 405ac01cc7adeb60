"""The two recurrences of LiSSA over minibatches A_B of A, for all rows at once."""

import itertools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers.problem import Problem
from keras_influence.linalg.sweeps import row_norms

# Heavy-ball momentum, and a step that is stable with it: (1 - 0.9) · 4 / σ.
_MOMENTUM = 0.9
_STEP = 0.4

Samples: TypeAlias = Iterator[LinearOperator]
Map: TypeAlias = Callable[[Array], Array]


def plain(problem: Problem, samples: Samples, scale: float, depth: int) -> Array | None:
    """One recurrence from h = v, or σ x0 if there is one; None if it grew without bound."""
    dtype = problem.system.dtype
    v = np.ascontiguousarray(problem.rows, dtype)
    h = (problem.start * scale).astype(dtype) if problem.start.any() else v.copy()
    # With 0 ≼ A_B ≼ 2σI the norm grows by at most ‖v‖ a step.
    first, growth = row_norms(h), row_norms(v)
    for step in range(1, depth + 1):
        update = v - next(samples).matmat(h) / dtype.type(scale)
        h += update
        if step % 50 == 0 or step == depth:
            if not (row_norms(h) <= 2 * (first + (step + 1) * growth)).all():
                return None
            left = row_norms(update) / growth.clip(1e-300)
            problem.on_step(step, float(left.max()))
    return h.astype(np.float64) / scale


def with_momentum(
    r: Array, samples: Samples, scale: float, precondition: Map, depth: int
) -> Array | None:
    """About A⁻¹ r by `depth` steps with momentum, averaged over the last quarter; or None."""
    first = next(samples)
    dtype = first.dtype.type
    r = np.ascontiguousarray(r, dtype)
    d, velocity, tail = np.zeros_like(r), np.zeros_like(r), np.zeros_like(r)
    last = max(1, depth // 4)
    for step, sample in enumerate(itertools.chain([first], itertools.islice(samples, depth - 1))):
        pull = precondition(r - sample.matmat(d) if step else r)
        velocity *= dtype(_MOMENTUM)
        velocity += dtype(_STEP / scale) * pull
        d += velocity
        if step >= depth - last:
            tail += d
        if step % 20 == 19 and not np.isfinite(d).all():
            return None
    return tail.astype(np.float64) / last if np.isfinite(tail).all() else None
