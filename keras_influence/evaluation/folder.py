"""A folder of results that outlives an interruption."""

import json
import pathlib

import numpy as np

from keras_influence import storage
from keras_influence.validate import check_folder


class Folder:
    """Arrays in files of their own, each written at once or not at all.

    Args:
        path: the folder, made if it does not exist; or None, to keep nothing.
        settings: dict that JSON takes. A folder that was made with others is refused.

    Raises:
        ValueError: the folder holds results of other settings.
    """

    def __init__(self, path, settings):
        check_folder("folder", path)
        self._path = None if path is None else pathlib.Path(path)
        if self._path is None:
            return
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not file.exists():
            with storage.writing(file) as stream:
                stream.write(json.dumps(settings, indent=2).encode())
        known = json.loads(file.read_text())
        changed = sorted(k for k in {*known, *settings} if known.get(k) != settings.get(k))
        if changed:
            raise ValueError(
                f"`folder` holds results of other settings: {', '.join(changed)} changed. Use "
                f"another folder, or delete this one. Received: folder={str(path)!r}"
            )

    def get(self, name, make):
        """The array of that name, made by `make()` and written if it is not there yet."""
        if self._path is None:
            return make()
        file = self._path / f"{name}.npy"
        if not file.exists():
            array = make()
            with storage.writing(file) as stream:
                np.save(stream, array, allow_pickle=False)
        return np.load(file, allow_pickle=False)
