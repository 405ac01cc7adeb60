"""A result in a file, with the evidence that stands beside it, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.questions.evidence import ARRAYS, SETTINGS
from keras_influence.version import __version__


def write_result(
    path: str | os.PathLike[str],
    result: Any,
    arrays: dict[str, np.ndarray],
    numbers: Sequence[str] = (),
) -> None:
    """Write some arrays and a result's evidence to one `.npz` file, without pickle.

    Args:
        path: file name; `.npz` is added if it is missing.
        result: what has the fields of evidence.
        arrays: what else is to be written, by name.
        numbers: names of fields that are plain numbers, and are written too.
    """
    about = {"version": __version__, **{f: getattr(result, f) for f in (*numbers, *SETTINGS)}}
    evidence = {f: np.asarray(getattr(result, f)) for f in ARRAYS}
    settings = np.array(storage.as_json(about))
    storage.write_arrays(path, {"settings": settings, **arrays, **evidence})


def read_result(
    path: str | os.PathLike[str], writer: str, names: Sequence[str], numbers: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `write_result` wrote: the evidence and the numbers, as fields; and all arrays by name.

    Args:
        path: the name that `write_result` was given.
        writer: what wrote it, for messages.
        names: arrays that must be there.
        numbers: names of fields that are plain numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or something else wrote it.
    """
    arrays = storage.read_arrays(path, writer, ["settings", *names, *ARRAYS])
    saved = json.loads(str(arrays["settings"]))
    fields = {f: saved[f] for f in (*numbers, *SETTINGS)}
    fields["parameters"] = tuple(fields["parameters"])
    return {**fields, **{f: arrays[f] for f in ARRAYS}}, arrays
