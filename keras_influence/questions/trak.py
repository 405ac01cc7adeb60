"""TRAK: attribution in randomly projected gradients (Park et al. 2023).

The projection is a set of random vectors, and gradients against vectors is what scores are made
of: layer by layer, certified on each batch, and never a gradient of each example side by side.
Each vector is drawn by a counter-based generator when it is its turn, once, and kept nowhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
import tensorflow as tf

from keras_influence.engine.kernels.targets import check_target
from keras_influence.engine.problem import Problem
from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target, gradient_blocks, read_test
from keras_influence.questions.checkpoints import checkpoints_of, quiet_problem, weights_restored
from keras_influence.questions.evidence import without_solve
from keras_influence.questions.likelihoods import check_likelihoods
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import PathArguments, PathSettings, takes
from keras_influence.questions.several import is_several
from keras_influence.questions.tracin import TracIn
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Vectors that go through the data together: how many, and in how many bytes.
_TOGETHER, _MEMORY, _COPIES = 128, 1e9, 4


@takes(PathSettings)
def trak_influence(
    model: Any,
    test: Any,
    train: Any,
    *,
    output: Target | None = None,
    target: Target | None = None,
    dim: int = 512,
    damping: float = 0.0,
    seed: int = 0,
    tracin: TracIn | None = None,
    **settings: Unpack[PathArguments],
) -> InfluenceScores:
    """Influence with projected gradients in place of gradients, and their products as curvature.

    With f the model's output, by default log(p / (1 - p)) of the likelihood p = e^-ℓ that it gives
    to an example's label, P a random (dim, p) matrix, and φ(f) = P ∇f,

        values[i, j] = φ(test_i)ᵀ (ΦᵀΦ / n + λI)⁻¹ φ(ℓ_j) / n,        rows of Φ: φ(f_j)

    which for a cross-entropy is minus the TRAK score of Park et al. (2023, section 3.2), as
    ∇ℓ_j = -(1 - p_j) ∇f_j: positive = helpful, as in `influence`. The matrix lacks the second
    derivative p (1 - p) of the loss, as in the paper, so trust the order of scores and not their size.
    All gradients take dim / 128 passes over the training data and no solve; more are needed where
    128 vectors like θ are larger than a quarter of a gigabyte.

    Args:
        model, test, train: as in `influence`. Of a list of models, TRAK's usual form, the mean
            of their scores, each with a projection of its own, with its standard error.
        output: f, a function of (x, y, y_pred) as `target` is, which the loss of a training example is
            to be a function of: for losses other than cross-entropies, such as the output
            itself for squared errors, and where there are sample weights, weights of losses, or labels
            that are smoothed or shared between classes.
        target: as in `influence`; the test loss if not given. The paper's is f.
        dim: rows of P; it should be well below n. From p on the gradients are taken as they are.
        damping: λ.
        seed: of P: row d is `tf.random.stateless_normal((p,), (seed, d))` / √dim.
        tracin: the `TracIn` of the model's training: the mean over its checkpoints after the first, as
            over a list of models. Being of one run they are less apart, and `error` is too small.
        **settings: `batch_size`, `class_weight`, `variables`, `verbose`, as in `influence`.

    Returns:
        `InfluenceScores` with `curvature="none"`; `details["saturated"]` says how many training
        examples have a loss of 0 up to rounding, and so no log-odds.

    Raises:
        ValueError: there is no likelihood and no `output`; the matrix is singular; and as `influence`.
    """
    check_number("dim", dim, low=1, integer=True)
    check_number("damping", damping)
    check_number("seed", seed, integer=True)
    about = output, target, dim, float(damping), PathSettings.of(settings)
    if is_several(model):
        if tracin is not None:
            raise ValueError(
                "`tracin` is for one model. Average what each model gives with its own."
            )
        parts = [_of_one(m, test, train, seed + k, *about) for k, m in enumerate(model)]
        return InfluenceScores.averaged(parts)
    if tracin is None:
        return _of_one(model, test, train, seed, *about)
    checkpoints, parts = checkpoints_of(tracin, model), []
    with weights_restored(model):
        for k, checkpoint in enumerate(checkpoints[1:]):
            model.set_weights(checkpoint.arrays())
            parts.append(_of_one(model, test, train, seed + k, *about))
    return InfluenceScores.averaged(parts)


def _of_one(
    model: Any,
    test: Any,
    train: Any,
    seed: int,
    output: Target | None,
    target: Target | None,
    dim: int,
    damping: float,
    settings: PathSettings,
) -> InfluenceScores:
    """Of one model with the weights that it has."""
    problem = quiet_problem(settings, model, train)
    examples = read_test(problem, test, target)
    projection = _Projection(problem, dim, seed)
    asked = projection.of(gradient_blocks(problem, examples, target), examples.n)
    slopes = projection.of_training_losses(Progress(settings.verbose))
    features, saturated = _features(problem, projection, slopes, output)
    matrix = features.T @ features / problem.n + damping * np.eye(features.shape[1])
    eps = float(np.finfo(problem.parameters.dtype.as_numpy_dtype).eps)
    values = asked @ _solved(matrix, slopes.T, problem.n - saturated, damping, eps) / problem.n
    config = {"dim": dim, "seed": seed}
    return InfluenceScores(
        values=values,
        passes=float(len(projection.blocks)),
        details={"dim": projection.dim, "saturated": saturated},
        **without_solve(examples.n, "TRAK", config, target, problem.parameters.variables, damping),
    )


class _Projection:
    """A random (dim, p) matrix, some rows at a time.

    Args:
        problem: the `Problem` whose gradients it is for.
        dim: how many rows; at p or more it is the identity.
        seed: of the rows.

    Attributes:
        dim: rows that there are.
        blocks: slices of rows that are there at once.
    """

    def __init__(self, problem: Problem, dim: int, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._p, self._dtype = problem.parameters.size, problem.parameters.dtype
        self._random = dim < self._p
        self.dim = dim if self._random else self._p
        fitting = int(_MEMORY // (_COPIES * self._dtype.size * self._p))
        size = min(_TOGETHER, max(1, fitting))
        self.blocks = [slice(i, min(i + size, self.dim)) for i in range(0, self.dim, size)]

    def rows(self, some: slice) -> np.ndarray:
        """Some of the rows, (k, p)."""
        if not self._random:
            return np.eye(some.stop - some.start, self._p, some.start, self._dtype.as_numpy_dtype)
        drawn = [
            tf.random.stateless_normal((self._p,), (self._seed, d), dtype=self._dtype)
            for d in range(some.start, some.stop)
        ]
        return np.stack(drawn) / np.sqrt(self.dim, dtype=self._dtype.as_numpy_dtype)

    def of(self, gradients: Iterable[tuple[slice, np.ndarray]], count: int) -> np.ndarray:
        """φ of gradients that come in blocks, (count, dim) float64."""
        found = np.empty((count, self.dim))
        for where, rows in gradients:
            for some in self.blocks:
                found[where, some] = rows @ self.rows(some).T
        return found

    def of_training_losses(self, progress: Progress) -> np.ndarray:
        """φ of each training loss, (n, dim) float64."""
        problem = self._problem
        found = np.empty((problem.n, self.dim))
        shown = progress.over(self.blocks, f"TRAK, {self.dim} dimensions", len(self.blocks))
        for some in shown:
            found[:, some] = problem.scores(self.rows(some)).T * problem.n
        # A summed loss counts n times in n L.
        return found / problem.n if problem.facts.sums else found


def _features(
    problem: Problem, projection: _Projection, slopes: np.ndarray, output: Target | None
) -> tuple[np.ndarray, int]:
    """Φ, (n, dim), and how many of its rows are 0 because nothing is known of them."""
    if output is not None:
        about = problem.objective, problem.train, problem.facts.own()
        check_target(output, *about, name="output", data="training")
        gradients = gradient_blocks(problem, problem.train, output, "train")
        return projection.of(gradients, problem.n), 0
    check_likelihoods(problem)
    wrong = -np.expm1(-problem.losses(problem.train))
    known = wrong > np.finfo(problem.parameters.dtype.as_numpy_dtype).eps
    inverse = np.divide(1.0, wrong, out=np.zeros_like(wrong), where=known)
    return slopes * inverse[:, None], int((~known).sum())


def _solved(
    matrix: np.ndarray, columns: np.ndarray, rank: int, damping: float, eps: float
) -> np.ndarray:
    """The inverse of the matrix, of at most that rank without damping, times some columns.

    Where it is singular but for rounding (shifts of all logits change no softmax, and some weights may see
    no data) its pseudo-inverse is taken.

    Args:
        eps: rounding in the numbers whose products the matrix is made of.
    """
    if rank < len(matrix) and not damping:
        raise ValueError(
            f"`dim`={len(matrix)} dimensions are too many for {rank} training examples: their products are "
            "singular. Take a smaller `dim`, or a positive `damping`."
        )
    least = len(matrix) * max(eps**2, np.finfo(np.float64).eps)
    with contextlib.suppress(np.linalg.LinAlgError):
        factor = scipy.linalg.cho_factor(matrix)
        pivots = factor[0].diagonal() ** 2
        if pivots.min() > least * pivots.max():
            return scipy.linalg.cho_solve(factor, columns)
    values, vectors = np.linalg.eigh(matrix)
    kept = values > least * values[-1]
    vectors = vectors[:, kept]
    return vectors @ (vectors.T @ columns / values[kept, None])
