"""SOURCE: training differentiated segment by segment, in closed form (Bae et al. 2024).

Gradient descent for a time t (the sum of its learning rates) around which the curvature C and an
example's gradient g stay as they are takes a change of the weights to exp(-tC) of it, and adds
(I - exp(-tC)) C⁻¹ g / n for an example that is missing. A training is a few such segments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence import _keras
from keras_influence.engine.problem import Problem
from keras_influence.linalg import solvers
from keras_influence.linalg.factors.blocks import Channels
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.solvers import EKFAC, Direct
from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target, gradient_blocks, read_test
from keras_influence.questions.checkpoints import (
    Checkpoint,
    checkpoints_of,
    epochs_per_step,
    quiet_problem,
    weights_restored,
)
from keras_influence.questions.evidence import without_solve
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import PathArguments, PathSettings, takes
from keras_influence.questions.tracin import TracIn
from keras_influence.questions.training_time import decay_of, sgd_of
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WAY_OUT = "Take `Replay`, which knows other optimizers, of trainings in full precision."


@takes(PathSettings)
def source_influence(
    model: Any,
    test: Any,
    train: Any,
    tracin: TracIn,
    *,
    segments: int = 3,
    method: Any = "ekfac",
    target: Target | None = None,
    **settings: Unpack[PathArguments],
) -> InfluenceScores:
    """How each test loss would change if training had gone without each training example.

    The training is cut into segments l = 1...L. With t_l the sum of the learning rates in one, C_l
    the mean of the Gauss-Newton matrix and g_lj that of ∇ℓ(train_j) over its checkpoints,

        values[i, j] = (1/n) ∇ℓ(test_i)ᵀ Σ_l [Π_{m>l} exp(-t_m C_m)] (I - exp(-t_l C_l)) C_l⁻¹ g_lj

    with the test gradient at the last checkpoint (Bae et al. 2024, section 3): positive = helpful,
    in units of the loss, as in `influence`. No minimum is assumed, and no damping is needed: a
    direction that training has not seen counts t_l, not 1/0. Of an endless training it is `influence`.

    It needs no more than `TracIn` keeps; `weight_decay` of the optimizer counts as curvature. Where steps are so large that they overshoot (a learning
    rate times curvature near 1), (1 - ηC)^k is not exp(-ηkC) any more. `Replay` is the exact derivative.

    Args:
        model: the model that was trained, compiled with the SGD that trained it: momentum μ makes
            a step as long as 1/(1 - μ) of them. Its present weights do not matter, and come back.
        test, train, target: as in `influence`.
        tracin: the `TracIn` that was given to `fit`; a dozen checkpoints are enough.
        segments: L, each of as many checkpoints. Means are taken by the trapezoidal rule, so
            that each segment includes the checkpoints at its two ends.
        method: how C_l is known: "ekfac" or `EKFAC(pseudo_gradients=...)`, with bases of the mean
            factors; or "direct", its dense matrix, for few weights.
        **settings: `batch_size`, `class_weight`, `variables`, `verbose`, as in `influence`.

    Returns:
        `InfluenceScores` with `curvature="none"`, as no linear system was solved; `details` has the
        times t_l.

    Raises:
        ValueError: there are too few checkpoints, or not of this model; another optimizer than SGD
            trained it; and as `influence`.
    """
    found, how = PathSettings.of(settings), _method(method)
    problem = quiet_problem(found, model, train)
    examples = read_test(problem, test, target)
    steps = _Steps.of(tracin, model, problem, segments)
    progress = Progress(found.verbose)
    with weights_restored(model):
        curvatures = steps.curvatures(problem, how, progress)
        model.set_weights(steps.checkpoints[-1].arrays())
        values = np.zeros((examples.n, problem.n))
        for where, rows in gradient_blocks(problem, examples, target):
            values[where] = steps.scores(problem, steps.back(curvatures, rows), progress)
    config = {"segments": segments, "method": how.get_config()}
    return InfluenceScores(
        values=values,
        passes=float(len(steps.checkpoints)),
        details={"segments": segments, "times": steps.times.tolist()},
        **without_solve(examples.n, "SOURCE", config, target, problem.parameters.variables),
    )


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A training in segments.

    Attributes:
        model: the model.
        checkpoints: of the training, M of them.
        times: (L,) how long gradient descent went in each segment.
        decay: of the weights by the optimizer, in units of an eigenvalue.
        shares: (L, M) of each checkpoint in the means of each segment; rows add up to 1.
    """

    model: Any
    checkpoints: list[Checkpoint]
    times: np.ndarray
    decay: float
    shares: np.ndarray

    @classmethod
    def of(cls, tracin: TracIn, model: Any, problem: Problem, segments: int) -> _Steps:
        """The segments of a training that a `TracIn` has seen.

        Raises:
            ValueError: they cannot be made.
        """
        checkpoints = checkpoints_of(tracin, model)
        optimizer = sgd_of(model, "SOURCE", _WAY_OUT)
        if problem.facts.sums and _keras.has_regularisers(model):
            raise ValueError(
                "SOURCE should know by how much regularisers count in a step; with a loss that is a sum "
                "over a batch that depends on the batch's size. Take a mean, or no regularisers."
            )
        intervals = np.diff([c.time for c in checkpoints])
        check_number("segments", segments, low=1, integer=True)
        if segments > len(intervals):
            raise ValueError(
                f"`segments` should be at most {len(intervals)}, the number of intervals between "
                f"checkpoints. Received: segments={segments}. TracIn(every=1) keeps more of them."
            )
        unit = epochs_per_step(checkpoints, model) if problem.facts.sums else 1.0
        edges = np.linspace(0, len(intervals), segments + 1).round().astype(int)
        pairs = list(zip(edges, edges[1:]))
        times = np.array([intervals[a:b].sum() for a, b in pairs])
        shares = np.zeros((segments, len(checkpoints)))
        for share, (a, b) in zip(shares, pairs):
            # Where nothing moved, for the rate was 0, it does not matter.
            weights = intervals[a:b] if intervals[a:b].any() else np.ones(b - a)
            share[a:b] += weights / 2
            share[a + 1 : b + 1] += weights / 2
            share /= weights.sum()
        # A step with momentum goes as far as 1/(1 - μ) of them, but for the decay of weights.
        slower = 1 - optimizer.momentum
        decay = decay_of(optimizer, problem.parameters.variables) * slower / unit
        return cls(model, checkpoints, unit * times / slower, decay, shares)

    @contextlib.contextmanager
    def standing(self, i: int) -> Iterator[None]:
        """The model with the weights of checkpoint i; afterwards with those of the last."""
        self.model.set_weights(self.checkpoints[i].arrays())
        try:
            yield
        finally:
            self.model.set_weights(self.checkpoints[-1].arrays())

    def curvatures(
        self, problem: Problem, how: EKFAC | Direct, progress: Progress
    ) -> list[Kronecker]:
        """The curvature of each segment."""
        count = len(self.shares)
        shown = progress.over(self.shares, f"SOURCE, {count} segments", count)
        return [self._curvature(problem, how, share) for share in shown]

    def _curvature(self, problem: Problem, how: EKFAC | Direct, share: np.ndarray) -> Kronecker:
        """The mean Gauss-Newton matrix over a segment, by its eigenvectors."""
        matrix, places = problem.curvature("gauss_newton"), np.flatnonzero(share).tolist()
        if isinstance(how, EKFAC):
            moments = [(share[i], functools.partial(self.standing, i)) for i in places]
            about = how.pseudo_gradients, how.seed, moments
            return Kronecker(matrix.network.kronecker(*about), 0.0)
        if matrix.size > how.max_size:
            raise ValueError(
                f"method='direct' would write out matrices of {matrix.size} x {matrix.size}. Use "
                f"method='ekfac', or Direct(max_size={matrix.size}) if that is what you want."
            )
        total = np.zeros((matrix.size, matrix.size))
        for i in places:
            with self.standing(i):
                total += share[i] * matrix.written_out()[0]
        values, vectors = np.linalg.eigh(total)
        everything = Positions.of(np.arange(matrix.size)[None])
        return Kronecker((Channels("θ", everything, vectors[None], values[None]),), 0.0)

    def back(self, curvatures: list[Kronecker], rows: np.ndarray) -> np.ndarray:
        """What each segment's gradients are to be multiplied by, for (k, p) rows: (L, k, p)."""
        parts = np.empty((len(curvatures), *rows.shape))
        for place in reversed(range(len(curvatures))):
            curvature, time = curvatures[place], self.times[place]

            def passed(values: np.ndarray, time: float = time) -> np.ndarray:
                return time * (np.maximum(values, 0) + self.decay)

            def past(values: np.ndarray, time: float = time) -> np.ndarray:
                return time * _mean_decay(passed(values, time))

            parts[place] = curvature.function(rows, past)
            rows = curvature.function(rows, lambda values: np.exp(-passed(values)))
        return parts

    def scores(self, problem: Problem, parts: np.ndarray, progress: Progress) -> np.ndarray:
        """Those of all training examples by what `back` gave, (k, n)."""
        found, count = np.zeros((parts.shape[1], problem.n)), len(self.checkpoints)
        for i in progress.over(range(count), f"Scores, {count} checkpoints", count):
            vectors = np.tensordot(self.shares[:, i], parts, 1)
            with self.standing(i):
                found += problem.scores(vectors)
        return found


def _mean_decay(x: np.ndarray) -> np.ndarray:
    """(1 - e^-x) / x, which is 1 at 0."""
    return np.divide(-np.expm1(-x), x, out=np.ones_like(x, float), where=x > 0)


def _method(method: Any) -> EKFAC | Direct:
    solver = solvers.get(method)
    if isinstance(solver, (EKFAC, Direct)):
        return solver
    raise ValueError(
        "`method` should be 'ekfac', EKFAC(...) or 'direct': SOURCE takes functions of the curvature, "
        f"for which its eigenvectors have to be known. Received: method={method!r}"
    )
