"""A folder of results that outlives an interruption."""

import hashlib
import inspect
import json
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

# What Keras numbers anew for each model of a process, and what follows from that.
_NAMES = ("name", "inbound_nodes", "input_layers", "output_layers", "shared_object_id")


class Folder:
    """Arrays in files of their own, each written at once or not at all.

    Args:
        path: the folder, made if it does not exist; or None, to keep nothing.
        settings: dict that JSON takes. A folder that was made with others is refused.

    Raises:
        ValueError: the folder holds results of other settings.
    """

    def __init__(self, path, settings):
        self._path = None if path is None else pathlib.Path(path)
        if self._path is None:
            return
        self._path.mkdir(parents=True, exist_ok=True)
        file = self._path / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not file.exists():
            self._write(file, lambda stream: stream.write(json.dumps(settings, indent=2).encode()))
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
            self._write(file, lambda stream: np.save(stream, array, allow_pickle=False))
        return np.load(file, allow_pickle=False)

    def __contains__(self, name):
        return self._path is not None and (self._path / f"{name}.npy").exists()

    @staticmethod
    def _write(file, write):
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        with partial.open("wb") as stream:
            write(stream)
        os.replace(partial, file)


def fingerprint_of_batches(batches):
    """A checksum of all values, dtypes and shapes of some data, whatever the batches are."""
    parts = {}
    for batch in batches:
        for i, leaf in enumerate(tf.nest.flatten(batch)):
            parts.setdefault(i, hashlib.sha256(str((leaf.dtype, leaf.shape[1:])).encode()))
            parts[i].update(np.ascontiguousarray(leaf.numpy()).tobytes())
    return "-".join(digest.hexdigest()[:16] for digest in parts.values())


def fingerprint_of_model(model, weights):
    """A checksum of architecture and compile state, names apart, and of the weights if asked."""
    shapes = [(tuple(v.shape), str(v.dtype)) for v in model.variables]
    config = _without_names(keras.saving.serialize_keras_object(model))
    digest = hashlib.sha256(json.dumps([shapes, config], sort_keys=True, default=str).encode())
    for variable in model.variables if weights else ():
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of_function(function):
    """A function's source where it can be had, else its name."""
    if function is None:
        return None
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = getattr(function, "__qualname__", type(function).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_names(config):
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k not in _NAMES}
    if isinstance(config, (list, tuple)):
        return [_without_names(item) for item in config]
    return config
