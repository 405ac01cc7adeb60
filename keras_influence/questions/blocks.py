"""Examples in blocks, so that what a question takes of memory does not grow with their number.

A block is solved for at once: its right-hand sides share their passes over the data and, with
conjugate gradients, their directions. So blocks are as large as memory allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_influence.engine.data.held import Batches
from keras_influence.engine.data.rows import take
from keras_influence.engine.kernels.whole_set import Together, WholeSet, gradient_of_set
from keras_influence.engine.problem import Problem
from keras_influence.errors import ConvergenceWarning
from keras_influence.linalg.solvers import Solution, Solver
from keras_influence.progress import Progress
from keras_influence.questions.attempts import Attempt

Target = Callable[[Any, Any, Any], Any] | WholeSet

# Bytes that a block may take while it is solved for.
_MEMORY = 1e9
# Beyond this many, what right-hand sides do to each other (k² numbers, k³ operations) costs more
# than what they share saves.
_MOST = 1000


def read_test(problem: Problem, test: Any, target: Target | None) -> Any:
    """Test examples as `Batches`; those of a `WholeSet` as a `Together`, which is asked as one.

    A target takes them without labels too: its y is None then.
    """
    examples = problem.read(test, "test", labels=target is None)
    return Together(examples) if isinstance(target, WholeSet) else examples


def block_size(parameters: int, each: float = Solver.row_bytes) -> int:
    """How many right-hand sides of p parameters are solved for at once.

    Args:
        parameters: p.
        each: bytes that a solver takes for one number of them.
    """
    return int(min(_MOST, max(1, _MEMORY // (each * parameters))))


class Bars:
    """One bar over several blocks, which each step of the work on one of them keeps alive."""

    def __init__(self, progress: Progress, title: str, count: int) -> None:
        self._step, self._done = progress.stage(title, count), 0

    def __call__(self, count: int, residual: float = np.nan) -> None:
        self._step(self._done, residual=residual)

    def advance(self, done: int) -> None:
        """All examples before this one are done."""
        self._done = done
        self._step(done)


def bars_over(problem: Problem, title: str, count: int, size: int | None = None) -> Bars | None:
    """The bar over several blocks; None where there is one, whose stages have bars of their own."""
    size = size or block_size(problem.parameters.size)
    return Bars(problem.progress, title, count) if count > size else None


class Block:
    """Some examples, solved for; to be used before the next one is asked for, which releases it.

    Attributes:
        where: their positions.
        gradients: (k, p), in the weights' dtype; until scores are asked for.
        solution: of (C + λI) x = v for each of them.
    """

    def __init__(
        self,
        where: slice,
        gradients: np.ndarray,
        solution: Solution,
        problem: Problem,
        bars: Bars | None,
    ) -> None:
        self.where, self.gradients, self.solution = where, gradients, solution
        self._problem, self._bars = problem, bars

    def release(self) -> None:
        """Let go of the arrays, whoever holds it still: they are not to lie beside those of the next."""
        for name in ("gradients", "solution"):
            vars(self).pop(name, None)

    def scores(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Of all training examples, batch by batch: (slice, (k, b)). Gradients are let go of."""
        problem = self._problem
        vars(self).pop("gradients", None)
        found = problem.scores_by_batch(self.solution.x)
        return self.over(found, len(problem.train), f"Scores of {problem.n} training examples")

    def over(self, parts: Iterable[Any], count: int, title: str) -> Iterator[Any]:
        """What so many batches give, with a bar."""
        if self._bars is None:
            yield from self._problem.progress.over(parts, title, count)
            return
        for done, part in enumerate(parts, 1):
            yield part
            self._bars(done)


def solved_blocks(
    problem: Problem,
    attempt: Attempt,
    examples: Batches,
    target: Target | None = None,
    *,
    title: str,
    name: str = "test",
    start: int = 0,
    size: int | None = None,
) -> Iterator[Block]:
    """The examples block by block, each solved for when it is its turn.

    Where there is one block, each of its stages has a bar; several blocks have one together, and
    a `ConvergenceWarning` that is about all of them.

    Args:
        problem: the `Problem`.
        attempt: the plan by which to solve.
        examples: the `Batches` whose gradients are the right-hand sides.
        target: what to take the gradient of, in place of the loss.
        title: of the bar over several blocks.
        name: what the examples are called in messages.
        start: position of the first one to solve for, a multiple of `size`.
        size: examples in a block; as many as memory allows if not given.

    Raises:
        SolverError: there is no answer by this plan.
    """
    size = size or block_size(problem.parameters.size, attempt.plan.solver.row_bytes)
    bars = bars_over(problem, title, examples.n, size)
    rows = gradient_blocks(problem, examples, target, name, start=start, size=size, bars=bars)
    return solved(problem, attempt, rows, bars)


def solved(
    problem: Problem,
    attempt: Attempt,
    blocks: Iterable[tuple[slice, np.ndarray]],
    bars: Bars | None,
) -> Iterator[Block]:
    """Right-hand sides block by block, as positions and (k, p), each solved for in its turn."""
    residual, converged = [], []
    for where, rows in blocks:
        solution = _solution(attempt, rows, bars)
        residual.append(solution.residual)
        converged.append(solution.converged)
        block = Block(where, rows, solution, problem, bars)
        del rows, solution
        yield block
        block.release()
        if bars is not None:
            bars.advance(where.stop)
    if bars is not None and residual:
        solver = attempt.plan.solver
        solver.warn_of_misses(np.concatenate(residual), np.concatenate(converged), solver.tol)


def gradient_blocks(
    problem: Problem,
    examples: Batches,
    target: Target | None = None,
    name: str = "test",
    *,
    start: int = 0,
    size: int | None = None,
    bars: Bars | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """∇ of the examples block by block, as positions and (k, p); as in `solved_blocks`."""
    dtype = problem.parameters.dtype.as_numpy_dtype
    if isinstance(target, WholeSet):
        yield slice(0, 1), gradient_of_set(problem.objective, examples, target)[None].astype(dtype)
        return
    size = size or block_size(problem.parameters.size)
    title = f"Gradients of {examples.n} examples"
    step = bars or problem.progress.stage(title, examples.n)
    first, filled = start, 0
    # What is yielded is not held here, where it would be until the next is asked for.
    held: list[np.ndarray] = []
    pieces = _pieces(examples, size, start)
    for part in problem.gradients_by_batch(pieces, examples, target, name, start):
        count = min(size, examples.n - first)
        if not held:
            held.append(np.empty((count, problem.parameters.size), dtype))
        held[0][filled : filled + len(part)] = part
        filled += len(part)
        # What is no longer needed is not to lie beside what a solver takes.
        del part
        step(first + filled)
        if filled == count:
            yield slice(first, first + filled), held.pop()
            first, filled = first + filled, 0


def _pieces(examples: Batches, size: int, start: int) -> Iterator[Any]:
    """The examples from `start` on in batches, of which none reaches into two blocks."""
    for where, batch in examples.enumerated():
        first = max(where.start, start)
        while first < where.stop:
            stop = min(where.stop, (first // size + 1) * size)
            whole = stop - first == where.stop - where.start
            yield batch if whole else take(batch, np.arange(first, stop) - where.start)
            first = stop


def _solution(attempt: Attempt, rows: np.ndarray, bars: Bars | None) -> Solution:
    """The solve of one block; of several, what it says of its convergence is held back."""
    if bars is None:
        return attempt.solve(rows)
    with warnings.catch_warnings():
        if attempt.plan.solver.tol is not None:
            warnings.simplefilter("ignore", ConvergenceWarning)
        return attempt.solve(rows, on_step=bars)
