"""The end of a training run: test losses there, and how they depend on its last state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_influence import _keras
from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.kernels.steps import TrainingStep
from keras_influence.engine.kernels.targets import Targets, check_target
from keras_influence.engine.kernels.whole_set import Together, WholeSet, gradient_of_set
from keras_influence.engine.layers.footprint import vectors_together
from keras_influence.engine.problem import Problem
from keras_influence.questions.blocks import Target


class RunEnd:
    """Test losses as a function of the last state of a run.

    Args:
        model: the model, with the weights that the run ended in.
        step: its step.
        test: the test examples, in the forms that `influence` takes.
        target: what to ask about in place of the loss.
        averaged: whether the run ended with the optimizer's moving average of the weights.

    Raises:
        ValueError, TypeError: `test` or `target` is not usable.
    """

    def __init__(
        self, model: Any, step: TrainingStep, test: Any, target: Target | None, averaged: bool
    ) -> None:
        self._model, self._step, self._target = model, step, target
        self._problem = Problem(model, test, name="test", hidden=False)
        self._columns = np.arange(step.weights)
        if averaged:
            for variable, average in _keras.averages_of(model.optimizer):
                self._columns[step.state.part(variable)] = np.arange(step.state.size)[
                    step.state.part(average)
                ]

    @property
    def test(self) -> Any:
        """The test examples, as `Batches`, or `Together`."""
        batches = self._problem.train
        return Together(batches) if isinstance(self._target, WholeSet) else batches

    def together(self, batch_size: int) -> int:
        """How many vectors go through a step at once."""
        itemsize, size = self._step.state.dtype.size, self._step.state.size
        return vectors_together(self._problem.footprint.numbers, itemsize, batch_size, size)

    def gradients(self, size: int) -> Iterator[np.ndarray]:
        """∂/∂s of each test loss, or target, at the last state, `size` test examples at a time."""
        facts, own = self._problem.facts, self._problem.facts.own()
        objective = Objective(self._model, self._variables(), facts.reading, facts.added)
        if isinstance(self._target, WholeSet):
            row = self._empty(1)
            row[:, self._columns] = gradient_of_set(objective, self.test, self._target)
            yield row
            return
        if self._target is not None:
            check_target(self._target, objective, self.test, own)
        rows = self._empty(0)
        for batch in self.test.in_batches_of(size):
            if self._target is None:
                found = objective.example_gradients(batch, own)
            else:
                found = objective.made(Targets).with_gradients(batch, own)[:, 1:]
            more = self._empty(len(found))
            more[:, self._columns] = found
            rows = np.concatenate([rows, more]) if len(rows) else more
            while len(rows) >= size:
                yield rows[:size]
                rows = rows[size:]
        if len(rows):
            yield rows

    def _empty(self, count: int) -> np.ndarray:
        dtype = self._step.state.dtype.as_numpy_dtype
        return np.zeros((count, self._step.state.size), dtype)

    def _variables(self) -> list[Any]:
        """Those of the state that are the model's."""
        state, weights = self._step.state, self._step.weights
        return [v for v in state.variables if state.part(v).stop <= weights]

    def outputs(self, state: np.ndarray) -> np.ndarray:
        """Each test loss, or target, of a run that ended in this state, (n_test,)."""
        with self._standing_at(state[self._columns]):
            return self._problem.outputs(self.test, self._target)

    @contextlib.contextmanager
    def _standing_at(self, weights: np.ndarray) -> Iterator[None]:
        """The model with other weights, for a while."""
        variables = self._variables()
        before = [v.numpy() for v in variables]
        ends = np.cumsum([b.size for b in before])[:-1]
        try:
            for variable, value, old in zip(variables, np.split(weights, ends), before):
                variable.assign(value.reshape(old.shape))
            yield
        finally:
            for variable, old in zip(variables, before):
                variable.assign(old)
