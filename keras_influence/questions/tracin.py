"""TracIn: influence as gradients that agree along the path of training (Pruthi et al. 2020)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.errors import warn
from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target, gradient_blocks, read_test
from keras_influence.questions.checkpoints import (
    Checkpoint,
    check_checkpoints,
    check_start,
    epochs_per_step,
    quiet_problem,
    same_arrays,
    weights_restored,
)
from keras_influence.questions.evidence import without_solve
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.settings import PathArguments, PathSettings, takes
from keras_influence.questions.training_time import scheduled_rates
from keras_influence.validate import check_folder, check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


class TracIn(keras.callbacks.Callback):
    """Keep checkpoints while a model is trained, and trace test losses back along them.

    With θ(t) the path of training and t the sum of the learning rates so far,

        values[i, j] = (1/n) ∫ ∇ℓ(test_i, θ(t)) · ∇ℓ(train_j, θ(t)) dt

    by the trapezoidal rule over the checkpoints. A step of SGD with learning rate η takes
    each of n examples with an expected weight η/n, whatever the batch size. So this is, to
    first order, how much the visits to train_j lowered test loss i, or how much higher it
    would be without them: positive = helpful, in units of the loss, as in `influence`.
    Summed over all training examples it is the whole drop of the test loss by SGD.

    Against the checkpoint sum of Pruthi et al. (2020, section 3.2), Σ η ∇ℓ · ∇ℓ, it is
    smaller by n over the steps between checkpoints, and counts half of each interval at
    either end. What a visit did to later steps is left out: where training converged, and
    for optimizers other than SGD, trust the ranking more than the size.

    Use it as a callback: `model.fit(..., callbacks=[tracin])`, then
    `tracin.influence(model, test, train)`. Training is left untouched. A second `fit` that goes on from
    there goes on with the checkpoints; any other begins anew, with a warning. Where `EarlyStopping` restores
    earlier weights, the epochs after these still count, with a warning that says how to leave them out.

    Args:
        every: keep a checkpoint after each `every`-th epoch, besides the first and last state.
        folder: keep the weights in files there, not in memory; `TracIn.load` reads them.

    Attributes:
        checkpoints: list of `Checkpoint`, oldest first.
    """

    def __init__(self, every: int = 1, folder: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        check_number("every", every, low=1, integer=True)
        check_folder("folder", folder)
        self.checkpoints: list[Checkpoint] = []
        self._every = every
        self._folder = None if folder is None else pathlib.Path(folder)
        self._epochs, self._steps, self._time = 0, 0, 0.0

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TracIn:
        """The checkpoints that a `TracIn(folder=folder)` left there.

        Raises:
            ValueError: there are none.
        """
        tracin = cls(folder=folder)
        found = [Checkpoint.read(path) for path in tracin._files()]
        if not found:
            raise ValueError(f"`folder` should hold checkpoints of TracIn. Received: {folder}")
        tracin.checkpoints = sorted(found, key=lambda checkpoint: checkpoint.steps)
        return tracin

    def _files(self) -> list[pathlib.Path]:
        return [] if self._folder is None else sorted(self._folder.glob("checkpoint_*.npz"))

    # ---- while training

    def on_train_begin(self, logs: Any = None) -> None:
        check_start(self.model)
        self._seen = self._iterations()
        if self._goes_on():
            last = self.checkpoints[-1]
            self._epochs, self._steps, self._time = last.epoch, last.steps, last.time
            return
        if self._files():
            raise ValueError(
                f"`folder` already holds the checkpoints of another training: {self._folder}. "
                "Choose another one, or delete them."
            )
        if self.checkpoints:
            warn(
                "TracIn forgets its checkpoints: this training does not begin with the weights that the "
                "one before it ended with. Take a new TracIn for each training to keep both.",
                UserWarning,
            )
        self.checkpoints = []
        self._epochs, self._steps, self._time = 0, 0, 0.0
        self._keep()

    def _goes_on(self) -> bool:
        """Whether training begins where the one before it ended."""
        if not self.checkpoints:
            return False
        weights = Checkpoint.of(0, 0, 0.0, self.model.get_weights()).arrays()
        return same_arrays(weights, self.checkpoints[-1].arrays())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._rate = float(self.model.optimizer.learning_rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # More than one with `steps_per_execution`, none while gradients accumulate.
        seen, self._seen = self._seen, self._iterations()
        steps = self._seen - seen
        rates = scheduled_rates(self.model.optimizer, range(seen, self._seen))
        self._steps += steps
        self._time += steps * self._rate if rates is None else float(rates.sum())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._epochs += 1
        if self._epochs % self._every == 0:
            self._keep()

    def on_train_end(self, logs: Any = None) -> None:
        if self.checkpoints[-1].epoch != self._epochs:
            self._keep()

    def _iterations(self) -> int:
        return int(self.model.optimizer.iterations)

    def _keep(self) -> None:
        weights = self.model.get_weights()
        checkpoint = Checkpoint.of(self._epochs, self._steps, self._time, weights)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            checkpoint = checkpoint.written(self._folder)
        self.checkpoints.append(checkpoint)

    # ---- afterwards

    @takes(PathSettings)
    def influence(
        self,
        model: Any,
        test: Any,
        train: Any,
        *,
        target: Target | None = None,
        **settings: Unpack[PathArguments],
    ) -> InfluenceScores:
        """How much training on each example lowered each test loss.

        The model's weights take the values of each checkpoint in turn, and are as before
        afterwards.

        Args:
            model: the model that was trained; its present weights do not matter.
            test, train, target: as in `keras_influence.influence`.
            **settings: `batch_size`, `class_weight`, `variables`, `verbose`, as there.

        Returns:
            `InfluenceScores` with `curvature="none"`: no linear system was solved.

        Raises:
            ValueError: there are no checkpoints, or they are not of this model.
        """
        found = PathSettings.of(settings)
        problem = quiet_problem(found, model, train)
        test = read_test(problem, test, target)

        def agreement() -> np.ndarray:
            blocks = gradient_blocks(problem, test, target)
            return np.concatenate([problem.scores(rows) for _, rows in blocks])

        values = self._integral(agreement, problem, Progress(found.verbose))
        return InfluenceScores(
            values=values,
            passes=float(len(self.checkpoints)),
            details={"epochs": [c.epoch for c in self.checkpoints]},
            **without_solve(
                test.n, "TracIn", {"every": self._every}, target, problem.parameters.variables
            ),
        )

    @takes(PathSettings)
    def self_influence(
        self, model: Any, train: Any, **settings: Unpack[PathArguments]
    ) -> np.ndarray:
        """How much training on each example lowered its own loss, times n.

        Args:
            As in `influence`.

        Returns:
            (n_train,) array of ∫ ‖∇ℓ(train_j, θ(t))‖² dt; wrong and odd labels come first.

        Raises:
            As `influence`.
        """
        found = PathSettings.of(settings)
        problem = quiet_problem(found, model, train)

        def squares() -> np.ndarray:
            rows = problem.gradients_by_batch(problem.train, problem.train)
            return np.concatenate([np.square(r, dtype=np.float64).sum(1) for r in rows])

        return self._integral(squares, problem, Progress(found.verbose))

    def _integral(
        self, function: Callable[[], np.ndarray], problem: Problem, progress: Progress
    ) -> np.ndarray:
        """∫ function dt along the checkpoints; for a summed loss, dt counts visits instead."""
        check_checkpoints(self.checkpoints, problem.model)
        sums = problem.facts.sums
        per_step = epochs_per_step(self.checkpoints, problem.model) if sums else 1.0
        count = len(self.checkpoints)
        shown = progress.over(self.checkpoints, f"TracIn, {count} checkpoints", count)
        total = np.zeros(())
        with weights_restored(problem.model):
            for checkpoint, share in zip(shown, self._shares()):
                problem.model.set_weights(checkpoint.arrays())
                total = total + per_step * share * function()
        return total

    def _shares(self) -> np.ndarray:
        """The part of the path that each checkpoint stands for: half of either side."""
        intervals = np.diff([c.time for c in self.checkpoints])
        return (np.append(0, intervals) + np.append(intervals, 0)) / 2
