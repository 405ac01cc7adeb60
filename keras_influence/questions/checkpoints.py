"""The weights of a model at moments of its training."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.engine.loss.checks import is_built, unscaled
from keras_influence.engine.problem import Problem
from keras_influence.errors import warn
from keras_influence.questions.settings import PathSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights at one moment of training.

    Attributes:
        epoch: finished epochs.
        steps: optimizer steps so far.
        time: sum of the learning rates of these steps, the time of gradient flow.
        weights: arrays aligned with `model.weights`, or the file that holds them.
    """

    epoch: int
    steps: int
    time: float
    weights: list[np.ndarray] | pathlib.Path

    @classmethod
    def of(cls, epoch: int, steps: int, time: float, weights: list[np.ndarray]) -> Checkpoint:
        """A checkpoint of weights that are copied, in types that `.npz` knows: bfloat16 is none."""
        types = [np.float32 if w.dtype.kind == "V" else w.dtype for w in weights]
        return cls(epoch, steps, time, [np.array(w, t) for w, t in zip(weights, types)])

    def arrays(self) -> list[np.ndarray]:
        if not isinstance(self.weights, pathlib.Path):
            return self.weights
        arrays = storage.read_arrays(self.weights, "TracIn", ["moment"])
        return [arrays[f"arr_{i}"] for i in range(len(arrays) - 1)]

    def written(self, folder: pathlib.Path) -> Checkpoint:
        """The same checkpoint with its weights in a file."""
        path = folder / f"checkpoint_{self.epoch:04d}.npz"
        moment = np.array([self.epoch, self.steps, self.time])
        arrays = {f"arr_{i}": array for i, array in enumerate(self.arrays())}
        storage.write_arrays(path, {**arrays, "moment": moment})
        return dataclasses.replace(self, weights=path)

    @classmethod
    def read(cls, path: pathlib.Path) -> Checkpoint:
        """A checkpoint whose weights stay in the file until they are needed."""
        try:
            with np.load(path, allow_pickle=False) as file:
                epoch, steps, time = file["moment"]
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`folder` should hold checkpoints of TracIn; {path} is none, or is damaged: {error}"
            ) from error
        return cls(int(epoch), int(steps), float(time), path)


def quiet_problem(settings: PathSettings, model: Any, train: Any) -> Problem:
    """The `Problem` of a model with these settings, but for the progress bar, which is that of the checkpoints."""
    return dataclasses.replace(settings, verbose=0).problem(model, train)


def check_start(model: Any) -> None:
    """Raise where the weights that training begins with are not there yet: `fit` would make them with its first step."""
    if not is_built(model):
        raise ValueError(
            "TracIn keeps the weights that training begins with, so `model` should be built before `fit`. "
            "Call it on a batch, or `model.build(input_shape)`."
        )


def checkpoints_of(tracin: Any, model: Any) -> list[Checkpoint]:
    """The checkpoints of a `TracIn`, which are to be of a training of this model."""
    if not hasattr(tracin, "checkpoints"):
        raise TypeError(
            "`tracin` should be the `TracIn` that was among the callbacks of `fit`. Received: "
            f"{type(tracin).__name__}"
        )
    found: list[Checkpoint] = tracin.checkpoints
    check_checkpoints(found, model)
    return found


def check_checkpoints(checkpoints: list[Checkpoint], model: Any) -> None:
    """Raise unless these are checkpoints of a training of this model.

    Warns where the model has weights that are earlier than the last checkpoint.
    """
    if not checkpoints or not checkpoints[-1].steps:
        raise ValueError(
            "TracIn has no checkpoints of a training. Call `model.fit(..., callbacks=[tracin])` "
            "first, or `TracIn.load(folder)`."
        )
    found = [a.shape for a in checkpoints[0].arrays()]
    expected = [tuple(w.shape) for w in model.weights]
    if found != expected:
        raise ValueError(
            "`model` should be the one that was trained: its weights have shapes "
            f"{expected}, the checkpoints {found}."
        )
    _look_for_restored(checkpoints, model)


def _look_for_restored(checkpoints: list[Checkpoint], model: Any) -> None:
    """Warn if a callback has restored earlier weights after the last step."""
    last = checkpoints[-1]
    now = Checkpoint.of(0, 0, 0.0, model.get_weights()).arrays()
    if same_arrays(now, last.arrays()):
        return
    # Not the first: new models may have these.
    later = range(len(checkpoints) - 1, 1, -1)
    found = next((k for k in later if same_arrays(now, checkpoints[k - 1].arrays())), None)
    if found is not None:
        warn(
            f"`model` has the weights of epoch {checkpoints[found - 1].epoch}, as EarlyStopping may have "
            f"restored them, and the checkpoints of TracIn go on to epoch {last.epoch}: scores are those of "
            f"the whole training. `del tracin.checkpoints[{found}:]` leaves out what came after.",
            UserWarning,
        )
        return
    optimizer = model.optimizer
    averaged = getattr(unscaled(optimizer), "use_ema", False)
    if optimizer is not None and int(optimizer.iterations) == last.steps and not averaged:
        warn(
            "`model` has other weights than its training ended with, as EarlyStopping may have restored "
            f"them from an epoch before {last.epoch}: scores are those of the whole training. With "
            "TracIn(every=1) what came after can be left out.",
            UserWarning,
        )


def epochs_per_step(checkpoints: list[Checkpoint], model: Any) -> float:
    """How far one step of a training goes, at rate 1, along the gradient of a loss that is summed.

    An epoch takes each example once, and a step the mean of the batches that it accumulates.
    """
    last, optimizer = checkpoints[-1], unscaled(model.optimizer)
    return last.epoch / last.steps / (getattr(optimizer, "gradient_accumulation_steps", 0) or 1)


def same_arrays(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether two lists of arrays are equal, to the last bit."""
    return len(some) == len(others) and all(map(np.array_equal, some, others))


@contextlib.contextmanager
def weights_restored(model: Any) -> Iterator[None]:
    """Whatever weights the model is given meanwhile, it has its own again afterwards."""
    weights = model.get_weights()
    try:
        yield
    finally:
        model.set_weights(weights)
