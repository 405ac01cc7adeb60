"""Recording a training with Keras, so that it can be run again and differentiated."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

from keras_influence import _keras, checksums
from keras_influence.engine.data import sources
from keras_influence.engine.data.orders import Order, in_epochs
from keras_influence.engine.data.rows import size as rows_of
from keras_influence.engine.kernels.steps import TrainingStep
from keras_influence.engine.loss import checks
from keras_influence.questions.replay.recording import Recording
from keras_influence.questions.replay.run import Run
from keras_influence.validate import check_class_weight, check_number


class Recorder(keras.callbacks.Callback):
    """A callback that gives `fit` its data and keeps what a `Run` needs; see `Replay`."""

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
        self._whole = _ready(sources.whole_of((x, y, sample_weight), "x, y", class_weight))
        self._order = Order(rows_of(self._whole), batch_size, seed)
        self._number = 0
        self._step: Any = None
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
    ) -> Recorder:
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
        recorder = cls(
            x,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            batch_size=about["batch_size"],
            seed=about["seed"],
        )
        recorder.set_model(model)
        recorder._step = _step_of(model)
        recorder._recording = recording
        found = recorder._about()
        for what, value in found.items():
            if value != about[what]:
                raise ValueError(
                    f"`folder` holds a training with another {what}: {about[what]!r}, not {value!r}."
                )
        return recorder

    def _about(self) -> dict[str, Any]:
        return {
            "batch_size": self._order.batch_size,
            "seed": self._order.seed,
            "data": self.fingerprint_of_data(),
            "model": [[*v.shape] for v in self._step.state.variables],
        }

    def fingerprint_of_data(self) -> str:
        """A checksum of the training data, in the order of scores' columns."""
        return checksums.fingerprint_of_batches([self._whole])

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
        self._recording.begin(self._about(), step.now().nbytes, steps)
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
        # With `steps_per_execution` Keras counts more of them than an epoch has.
        self._done = self._first + min(batch + 1, len(self._order))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._recording.keep(self._done, self._step.now(), last=True)
        self._recording.ends.append((self._done, self._fingerprint()))

    def on_train_end(self, logs: Any = None) -> None:
        self._number = 0
        self._recording.left = self._fingerprint()
        self._recording.write()

    def _fingerprint(self) -> str:
        return checksums.fingerprint_of_weights(self.model.weights)

    # ---- afterwards

    def _run(self) -> Run:
        """The run that led to the weights that the model has."""
        recording, step = self._recording, self._step
        if step is None or not any(steps for steps, _ in recording.ends):
            raise ValueError(
                "Replay has no training. Call `model.fit(replay.data, epochs=..., "
                "callbacks=[replay])` first, or `Replay.load(folder, model, x, y)`."
            )
        found = self._fingerprint()
        stops = [steps for steps, known in recording.ends if known == found]
        averaged = not stops and found == recording.left and self.model.optimizer.use_ema
        if averaged:
            stops = [recording.ends[-1][0]]
        if not stops:
            raise ValueError(
                "The model has not the weights of the end of an epoch of the recorded training: it "
                "was trained on, or a callback replaced them. Restore them, or train again with "
                "this callback."
            )
        weights = step.now()[: step.weights]
        return Run(step, recording, self._whole, self._order, stops[-1], weights, averaged)


def _ready(whole: Any) -> Any:
    """Training data as tf.data takes them: without lists; sparse ones are refused."""
    if any(isinstance(leaf, tf.SparseTensor) for leaf in tf.nest.flatten(whole)):
        raise TypeError(
            "`x` should be dense: x.toarray() of a SciPy matrix, tf.sparse.to_dense(x)."
        )
    return keras.tree.lists_to_tuples(whole)


def _step_of(model: Any) -> TrainingStep:
    """The training step of a model, whose optimizer is built if it was not.

    Raises:
        ValueError: the training cannot be replayed, with the reason.
    """
    checks.check_model(model, hidden=False)
    optimizer = model.optimizer
    reason = None
    trains = _keras.class_with_train_step(model)
    if trains:
        reason = f"{trains} has a `train_step` of its own, which cannot be looked into"
    elif optimizer is None:
        reason = "the model has no optimizer"
    elif isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        reason = "a LossScaleOptimizer leaves steps out; train in float32 without one"
    elif any(layer.compute_dtype != layer.variable_dtype for layer in _keras.layers_of(model)):
        reason = "mixed precision is too coarse to differentiate a run through; train in float32"
    elif any(v.dtype in ("float16", "bfloat16") for v in model.trainable_variables):
        reason = "half precision is too coarse to differentiate a run through; train in float32"
    elif model.distribute_strategy.num_replicas_in_sync > 1:
        reason = "it runs on several devices at once; train on one"
    if reason is not None:
        raise ValueError(f"This training cannot be replayed: {reason}.")
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return TrainingStep(model)
