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


@dataclasses.dataclass(frozen=True)
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


def check_checkpoints(checkpoints: list[Checkpoint], model: Any) -> None:
    """Raise unless these are checkpoints of a training of this model."""
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


@contextlib.contextmanager
def weights_restored(model: Any) -> Iterator[None]:
    """Whatever weights the model is given meanwhile, it has its own again afterwards."""
    weights = model.get_weights()
    try:
        yield
    finally:
        model.set_weights(weights)
