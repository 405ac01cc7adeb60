"""What is kept of a training so that it can be run again: its states, in memory or in a folder."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.validate import check_folder, check_number

# Bytes that the states may take where the user does not say.
_IN_MEMORY, _IN_FOLDER = 1e9, 1e10
_FILE = "recording.npz"


class Recording:
    """States of a training at some of its steps, and what is given beside them.

    Where the states of all steps are more than the budget holds, one is kept every so many
    steps. In memory half of the budget is for them, half for what is run again between two of
    them; beside a folder that has a gigabyte of memory.

    Args:
        folder: where states go; memory if None.
        budget: bytes that states may take; None for a gigabyte in memory, ten in a folder.

    Attributes:
        about: what the training was of, to know it again: JSON.
        epochs: (number, first step) of each epoch.
        ends: (steps so far, fingerprint of the model's weights) at the end of each epoch.
        left: fingerprint of the weights that `fit` left.
        slots: states that may be held at once while steps are run again.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, budget: float | None = None
    ) -> None:
        check_number("budget", budget, low=0, strict=True, optional=True)
        check_folder("folder", folder)
        self.folder = None if folder is None else pathlib.Path(folder)
        self._budget = budget or (_IN_MEMORY if folder is None else _IN_FOLDER)
        self._clear()

    def _clear(self) -> None:
        self.about: dict[str, Any] = {}
        self.epochs: list[tuple[int, int]] = []
        self.ends: list[tuple[int, str]] = []
        self.left = ""
        self._states: dict[int, np.ndarray | pathlib.Path] = {}
        self._given: dict[int, list[np.ndarray]] = {}
        self._every, self.slots, self._last = 1, 2, -1

    def begin(self, about: dict[str, Any], bytes_of_a_state: int, steps: int) -> None:
        """Forget what was kept before.

        Raises:
            ValueError: the folder holds a training.
        """
        if self.folder is not None:
            check_folder("folder", self.folder)
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ValueError(
                    f"`folder` should be empty or new, but {self.folder} holds something, as of "
                    "another training. Choose another one, or delete what is there."
                )
            self.folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        self.about = about
        fitting = max(4, int(self._budget // bytes_of_a_state))
        if steps > fitting:
            # What is run again is held in memory, wherever the others are.
            self.slots = fitting // 2
            if self.folder is not None:
                self.slots = max(2, int(_IN_MEMORY // bytes_of_a_state))
            kept = fitting if self.folder is not None else fitting - self.slots
            self._every = -(-steps // kept)

    def wants(self, step: int) -> bool:
        """Whether the state before this step is to be kept."""
        kept = self._states.keys() - {self._last}
        return not kept or step - max(kept) >= self._every

    def keep(self, step: int, state: np.ndarray, last: bool = False) -> None:
        """Keep a state; one that was kept for being the last is kept no longer."""
        if self._last in self._states:
            self._drop(self._last)
        self._last = step if last else -1
        if self.folder is None:
            self._states[step] = state
            return
        path = self.folder / f"state_{step:08d}.npy"
        with storage.writing(path) as file:
            np.save(file, state)
        self._states[step] = path

    def _drop(self, step: int) -> None:
        state = self._states.pop(step)
        if isinstance(state, pathlib.Path):
            state.unlink()

    def beside(self, step: int, given: list[np.ndarray]) -> None:
        """Keep what is given beside the state before this step."""
        self._given[step] = given

    # ---- afterwards

    def kept(self, stop: int) -> list[int]:
        """The steps before `stop` whose states are kept, in order."""
        return sorted(step for step in self._states if step < stop)

    def state(self, step: int) -> np.ndarray | None:
        """The state before this step, if it was kept."""
        state = self._states.get(step)
        return np.load(state) if isinstance(state, pathlib.Path) else state

    def given(self, step: int) -> list[np.ndarray] | None:
        """What is given beside the state before this step, where `fit` let it be seen."""
        return self._given.get(step)

    # ---- in a folder

    def write(self) -> None:
        """Write what is not a state to the folder, if there is one."""
        if self.folder is None:
            return
        steps = sorted(self._given)
        settings = {
            "about": self.about,
            "epochs": self.epochs,
            "ends": self.ends,
            "left": self.left,
            "slots": self.slots,
        }
        arrays = {
            f"given_{i}": np.stack([self._given[step][i] for step in steps])
            for i in range(len(self._given[steps[0]]))
        }
        text = np.array(storage.as_json(settings))
        storage.write_arrays(self.folder / _FILE, {"settings": text, "steps": steps, **arrays})

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Recording:
        """What a training left in a folder.

        Raises:
            ValueError: nothing, or it is damaged.
        """
        recording = cls(folder)
        path = pathlib.Path(folder) / _FILE
        if not path.exists():
            raise ValueError(
                f"`folder` should hold a training that `Replay(folder=...)` recorded. Received: "
                f"{os.fspath(folder)!r}"
            )
        arrays = storage.read_arrays(path, "Replay", ["settings", "steps"])
        settings = json.loads(str(arrays["settings"]))
        recording.about, recording.slots = settings["about"], settings["slots"]
        recording.left = settings["left"]
        recording.epochs = [(number, first) for number, first in settings["epochs"]]
        recording.ends = [(steps, print_) for steps, print_ in settings["ends"]]
        count = sum(name.startswith("given_") for name in arrays)
        for i, step in enumerate(arrays["steps"].tolist()):
            recording._given[step] = [arrays[f"given_{j}"][i] for j in range(count)]
        for file in path.parent.glob("state_*.npy"):
            recording._states[int(file.stem.removeprefix("state_"))] = file
        return recording
