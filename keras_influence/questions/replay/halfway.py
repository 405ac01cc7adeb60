"""How far a way back through a training has come, kept in a folder, so that it can go on there."""

from __future__ import annotations

import pathlib
import time

import numpy as np

from keras_influence import checksums, storage

# Seconds of work that a lost process may cost.
_EVERY = 60.0


class Halfway:
    """The cotangents and sums of one way back, written now and then.

    Args:
        folder: where to; None for nowhere.
        cotangents: those that it begins with, (k, s).
        stop: the step after which it begins.
        n: number of training examples.
    """

    def __init__(
        self, folder: pathlib.Path | None, cotangents: np.ndarray, stop: int, n: int
    ) -> None:
        self._path = None
        self._begin = cotangents, np.zeros((len(cotangents), n)), stop
        self._due = time.monotonic() + _EVERY
        if folder is not None:
            name = checksums.fingerprint_of_weights([cotangents, np.array(stop)])
            self._path = folder / f"halfway_{name}.npz"

    def found(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Cotangents, sums and the number of steps that are left: as written, or the beginning."""
        if self._path is None or not self._path.exists():
            return self._begin
        arrays = storage.read_arrays(self._path, "Replay", ["cotangents", "values", "left"])
        return arrays["cotangents"], arrays["values"], int(arrays["left"])

    def maybe(self, cotangents: np.ndarray, values: np.ndarray, left: int) -> None:
        """Write where the way is, if it is time."""
        if self._path is not None and time.monotonic() >= self._due:
            arrays = {"cotangents": cotangents, "values": values, "left": np.array(left)}
            storage.write_arrays(self._path, arrays)
            self._due = time.monotonic() + _EVERY

    def done(self, values: np.ndarray) -> None:
        """Keep the result, for a call that is about more than this."""
        if self._path is not None:
            arrays = {"cotangents": values[:, :0], "values": values, "left": np.array(0)}
            storage.write_arrays(self._path, arrays)

    def forget(self) -> None:
        """Nothing is left to go on with."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
