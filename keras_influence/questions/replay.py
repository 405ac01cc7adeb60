"""Replay: influence as the exact derivative of a training run (Engstrom et al. 2025)."""

from __future__ import annotations

import os
from typing import Any, Literal

import keras
import numpy as np

from keras_influence import storage
from keras_influence.engine.data import sources
from keras_influence.engine.data.orders import Order, in_epochs
from keras_influence.engine.data.rows import size as rows_of
from keras_influence.engine.kernels.steps import TrainingStep
from keras_influence.engine.loss import checks
from keras_influence.progress import Progress
from keras_influence.questions.blocks import Target
from keras_influence.questions.evidence import name_of
from keras_influence.questions.recording import Recording
from keras_influence.questions.run import Run
from keras_influence.questions.run_end import RunEnd
from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.smoothness import Smoothness, random_groups, without
from keras_influence.validate import check_class_weight, check_number

# Bytes of the vectors that go back through a run together, and how often each is held.
_MEMORY, _COPIES = 1e9, 4


class Replay(keras.callbacks.Callback):
    """Record a training so that it can be differentiated: leave-one-out of the run itself.

        replay = Replay(x, y, batch_size=100)
        model.fit(replay.data, epochs=20, callbacks=[replay])
        scores = replay.influence(test)

    With ω_j one more factor of training example j's sample weight in every step of the run,

        values[i, j] = - ∂ℓ(test_i, θ_end(ω)) / ∂ω_j   at ω = 1,

    which is to first order how much higher test loss i would be, had the same run (same start,
    order, and random numbers) gone without train_j: positive = helpful, in units of the loss, as in
    `influence`. No minimum and no curvature is assumed; the whole path counts, with BatchNormalization
    in training mode, dropout, momentum, schedules, weight decay. It is exact as a derivative, and
    what that is worth for a removal depends on how smooth the run is: see `smoothness`.

    The reverse-mode derivative goes back through all steps (Engstrom et al. 2025; Ilyas and
    Engstrom 2025). Each step is Keras's own, compared with where `fit` went. It costs about three
    trainings for one test example, and less for each of many.

    Args:
        x, y, sample_weight: the training data, as in `model.fit`: arrays, tensors, nested ones.
        batch_size: examples in a step.
        seed: of the order of the examples, which is another one in each epoch.
        class_weight: dict from class index to weight, in place of that of `fit`.
        folder: where to keep the states between steps, empty or new; `load` reads them in another
            process, and a call that was killed goes on there. None: in memory.
        budget: bytes that the states may take: by default 1e9 in memory, 1e10 in `folder`. What
            does not fit is run again from the states that do.

    Attributes:
        data: what `fit` is to be given, a `tf.data.Dataset`.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        folder: str | os.PathLike[str] | None = None,
        budget: float | None = None,
    ) -> None:
        super().__init__()
        check_number("batch_size", batch_size, low=1, integer=True)
        check_number("seed", seed, integer=True)
        check_class_weight(class_weight)
        self._recording = Recording(folder, budget)
        data = tuple(part for part in (x, y, sample_weight) if part is not None)
        data = (x, y, sample_weight) if sample_weight is not None else data
        self._whole = sources.whole_of(data, "x, y", class_weight)
        self._order = Order(rows_of(self._whole), batch_size, seed)
        self._number = 0
        self._step: TrainingStep | None = None
        self.data = in_epochs(self._whole, self._order, lambda: self._number)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: Any,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
    ) -> Replay:
        """The training that a `Replay(folder=...)` recorded, in another process.

        Args:
            folder: what `Replay` was given.
            model: the model as `fit` left it, compiled, as of `keras.models.load_model`.
            x, y, sample_weight, class_weight: the same training data.

        Raises:
            ValueError: the folder holds no training, or one of other data or another model.
        """
        recording = Recording.read(folder)
        about = recording.about
        replay = cls(
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=about["batch_size"],
            seed=about["seed"],
        )
        replay.set_model(model)
        replay._step = _step_of(model)
        replay._recording = recording
        found = replay._about(model)
        for what, value in found.items():
            if value != about[what]:
                raise ValueError(
                    f"`folder` holds a training with another {what}: {about[what]!r}, not {value!r}."
                )
        return replay

    def _about(self, model: Any) -> dict[str, Any]:
        return {
            "batch_size": self._order.batch_size,
            "seed": self._order.seed,
            "data": storage.fingerprint_of_batches([self._whole]),
            "model": [[*v.shape] for v in _step_of(model).state.variables],
        }

    # ---- while training

    def on_train_begin(self, logs: Any = None) -> None:
        if self.params.get("steps") != len(self._order):
            raise ValueError(
                "Train with `model.fit(replay.data, epochs=..., callbacks=[replay])`, without "
                f"`steps_per_epoch`: an epoch has {len(self._order)} steps. "
                f"Received: steps={self.params.get('steps')}"
            )
        self._step = step = _step_of(self.model)
        steps = len(self._order) * self.params["epochs"]
        self._recording.begin(self._about(self.model), step.now().nbytes, steps)
        self._first = self._done = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._number, self._first = epoch, self._done
        self._recording.epochs.append((epoch, self._first))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        t = self._first + batch
        self._recording.beside(t, self._step.given_now())
        if self._recording.wants(t):
            self._recording.keep(t, self._step.now())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._done = self._first + batch + 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._recording.keep(self._done, self._step.now(), last=True)
        self._end_here()

    def on_train_end(self, logs: Any = None) -> None:
        self._number = 0
        self._end_here()
        self._recording.write()

    def _end_here(self) -> None:
        self._recording.ends.append(
            (self._done, storage.fingerprint_of_weights(self.model.weights))
        )

    # ---- afterwards

    def influence(
        self, test: Any, target: Target | None = None, *, verbose: int | Literal["auto"] = "auto"
    ) -> InfluenceScores:
        """How each test loss would change if the run had gone without a training example.

        Args:
            test, target: as in `keras_influence.influence`.
            verbose: 0 is silent, 1 shows a progress bar, "auto" shows one for long work.

        Returns:
            `InfluenceScores` with columns in the order of `x`, and `curvature="none"`: no linear
            system was solved. `details` has the number of steps, how many of them the call ran
            forwards and backwards, and `rounding`, the largest difference between where a step
            led and where `fit` went, as a part of the way.

        Raises:
            ValueError: there is no recorded training, the model no longer has the weights that it
                left, or the steps do not lead to where `fit` went.
        """
        run, end = self._run_and_end(test, target)
        rows, together = end.gradients(), end.together(self._order.batch_size)
        step = Progress(verbose).stage(f"Back through {run.stop} steps", run.stop)
        size = max(1, int(_MEMORY // (_COPIES * rows[0].nbytes)))
        blocks = [rows[first : first + size] for first in range(0, len(rows), size)]
        values = np.concatenate([run.back(block, together, step) for block in blocks])
        step.close()
        if not values.any():
            raise ValueError(
                "No sample weight has an effect on this run: `compute_loss` seems to ignore "
                "`sample_weight`. Use it there."
            )
        about = self._recording.about
        config = {"batch_size": about["batch_size"], "seed": about["seed"]}
        return InfluenceScores(
            values=-values,
            residual=np.zeros(len(rows)),
            iterations=np.zeros(len(rows), int),
            converged=np.ones(len(rows), bool),
            solver={"class_name": "Replay", "config": config},
            details=run.details(),
            curvature="none",
            damping=0.0,
            target=name_of(target),
            parameters=tuple(v.path for v in self.model.trainable_variables),
        )

    def losses(
        self,
        test: Any,
        weights: Any = None,
        target: Target | None = None,
        *,
        verbose: int | Literal["auto"] = "auto",
    ) -> np.ndarray:
        """Test losses after the run is done once more with other weights of the examples: the truth.

        Args:
            test, target: as in `influence`.
            weights: (n,) factors of the sample weights: 0 leaves an example out. Default: all 1.
            verbose: as in `influence`.

        Returns:
            (n_test,) array of losses, or of `target`. The model stays as it is.

        Raises:
            As `influence`.
        """
        run, end = self._run_and_end(test, target)
        n = self._order.n
        omega = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        if omega.shape != (n,) or not np.isfinite(omega).all():
            raise ValueError(
                f"`weights` should be {n} finite numbers, one for each training example. "
                f"Received: shape {omega.shape}"
            )
        step = Progress(verbose).stage(f"{run.stop} steps", run.stop)
        outputs = end.outputs(run.end(omega, step))
        step.close()
        return outputs

    def smoothness(
        self,
        test: Any,
        target: Target | None = None,
        *,
        fraction: float = 0.01,
        trials: int = 8,
        seed: int = 0,
        scores: InfluenceScores | None = None,
        verbose: int | Literal["auto"] = "auto",
    ) -> Smoothness:
        """How linear the run is in its data: what scores predict, beside what happens.

        The run is done again `trials` times, each without another random part of the training
        examples. Where predictions fail, what to change about the training is said in words.

        Args:
            test, target: as in `influence`; a few dozen test examples tell more than one.
            fraction: the part of the training examples that is left out at a time.
            trials: number of runs.
            seed: of the random parts.
            scores: those of `influence` for the same test and target, if they are there.
            verbose: as in `influence`.

        Returns:
            A `Smoothness`; print it.

        Raises:
            As `influence`.
        """
        check_number("trials", trials, low=1, integer=True)
        check_number("fraction", fraction, strict=True)
        if scores is None:
            scores = self.influence(test, target, verbose=verbose)
        run, end = self._run_and_end(test, target)
        groups = random_groups(self._order.n, fraction, trials, seed)
        shown = Progress(verbose).over(groups, f"{trials} runs without some examples", trials)
        base = end.outputs(run.end())
        actual = [end.outputs(run.end(without(self._order.n, group))) - base for group in shown]
        return Smoothness.of(self.model, scores, groups, np.stack(actual))

    def _run_and_end(self, test: Any, target: Target | None) -> tuple[Run, RunEnd]:
        """The run that led to the weights that the model has, and its end."""
        recording, step = self._recording, self._step
        if step is None or not any(steps for steps, _ in recording.ends):
            raise ValueError(
                "Replay has no training. Call `model.fit(replay.data, epochs=..., "
                "callbacks=[replay])` first, or `Replay.load(folder, model, x, y)`."
            )
        found = storage.fingerprint_of_weights(self.model.weights)
        at = [i for i, (_, known) in enumerate(recording.ends) if known == found]
        if not at:
            raise ValueError(
                "The model no longer has the weights that the recorded training left, nor those "
                "of the end of one of its epochs. Restore them, or train again with this callback."
            )
        averaged = at[-1] == len(recording.ends) - 1 and self.model.optimizer.use_ema
        stop = recording.ends[at[-1]][0]
        weights = None if averaged else step.now()[: step.weights]
        run = Run(step, recording, self._whole, self._order, stop, weights)
        return run, RunEnd(self.model, step, test, target, averaged)


def _step_of(model: Any) -> TrainingStep:
    """The training step of a model, whose optimizer is built if it was not.

    Raises:
        ValueError: the training cannot be replayed, with the reason.
    """
    checks.check_model(model, hidden=False)
    optimizer = model.optimizer
    reason = None
    if type(model).train_step is not keras.Model.train_step:
        reason = (
            f"{type(model).__name__} has a `train_step` of its own, which cannot be looked into"
        )
    elif optimizer is None:
        reason = "the model has no optimizer"
    elif isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        reason = "a LossScaleOptimizer leaves steps out; compile with auto_scale_loss=False"
    elif any(layer.compute_dtype != layer.variable_dtype for layer in model._flatten_layers()):
        reason = "mixed precision is too coarse to differentiate a run through; train in float32"
    elif model.distribute_strategy.num_replicas_in_sync > 1:
        reason = "it runs on several devices at once; train on one"
    if reason is not None:
        raise ValueError(f"This training cannot be replayed: {reason}.")
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return TrainingStep(model)
