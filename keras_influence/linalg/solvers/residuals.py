"""How far an answer is from the solution, computed anew with the matrix itself."""

import dataclasses

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.linalg.sweeps import row_norms

# Rows of an approximate answer whose residual is measured, at most, and numbers in them: of large networks a
# product with each takes as long as the answer itself.
_MEASURED, _NUMBERS = 16, 2**22
# Rows of an exact one that are bounded together, by how many sums of them, and how far above what these say.
_TOGETHER, _SUMS, _MARGIN = 128, 4, 2.0


def relative_residual(problem: Problem, answer: Answer) -> Array:
    """‖v - A x‖ / ‖v‖ for each row; 0 where v and x are zero."""
    norms, left = row_norms(problem.rows), answer.remainder
    left = problem.remainder(answer.x) if left is None else left
    return row_norms(left) / np.where(norms > 0, norms, 1)


def measured(problem: Problem) -> int:
    """Of how many rows the residual of an approximation is measured."""
    return int(np.clip(_NUMBERS // problem.rows.shape[1], 1, _MEASURED))


def sampled_residual(problem: Problem, answer: Answer) -> Array:
    """The same of a few rows from all over; of the others the largest of these."""
    count, most = len(problem.rows), measured(problem)
    # One as a view: of large networks it is a good part of all that is held.
    some = slice(0, 1) if most == 1 else np.unique(np.linspace(0, count - 1, most).astype(int))
    part = dataclasses.replace(problem, rows=problem.rows[some])
    found = relative_residual(part, Answer(answer.x[some], answer.iterations))
    residual = np.full(len(problem.rows), found.max())
    residual[some] = found
    return residual


def bounded_residual(problem: Problem, answer: Answer, tol: float) -> Array:
    """The same, or where there are many rows a bound on it, as far as that is within `tol`.

    With signs drawn at random Σᵢ ±rᵢ has, on average over them, the squared norm Σᵢ |rᵢ|², which is at least
    that of each: so products with a few such sums of answers say enough of all of these. What a
    single row is off by is in each sum; a bound is twice what four of them say.
    """
    count = len(problem.rows)
    groups = [slice(start, start + _TOGETHER) for start in range(0, count, _TOGETHER)]
    if count <= _SUMS * len(groups):
        return relative_residual(problem, answer)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_SUMS, count))
    norms = row_norms(problem.rows)
    signs /= np.where(norms > 0, norms, 1)
    rows, x = (
        np.concatenate([signs[:, some] @ array[some] for some in groups])
        for array in (problem.rows, answer.x)
    )
    left = dataclasses.replace(problem, rows=rows).remainder(x)
    of_groups = np.sqrt((row_norms(left) ** 2).reshape(len(groups), _SUMS).mean(1))
    residual = _MARGIN * np.repeat(of_groups, _TOGETHER)[:count]
    far = np.flatnonzero(residual > tol)
    if far.size:
        part = dataclasses.replace(problem, rows=problem.rows[far])
        residual[far] = relative_residual(part, Answer(answer.x[far], answer.iterations))
    return residual
