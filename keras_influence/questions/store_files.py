"""The files of a store of scores: a Zarr group, with arrays and attributes of its own.

The arrays are `values` and the evidence for them. The attributes say what the scores are of, and
how many test examples are done; they are replaced by a rename.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.questions.evidence import ARRAYS

# Scores in one chunk, which is one file: a block of test examples by some training examples.
_CHUNK = 2**22
_NAME = "keras_influence"
_TYPES = {"residual": "float64", "iterations": "int64", "converged": "bool"}
# What is read where nothing was written, by whoever opens the arrays of a store without us.
_UNKNOWN = {"residual": np.nan}


def open_scores(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the `InfluenceScores` in a store, `values` as a `zarr.Array`."""
    zarr, path = zarr_package(), pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` should be a folder of scores. Received: {str(path)!r}")
    state = read_state(path)
    if state is None:
        raise ValueError(
            f"`path` should be a folder that influence(..., store=) has written; {path} is not."
        )
    values = zarr.open_array(str(path / "values"), mode="r")
    if state["done"] < values.shape[0]:
        raise ValueError(
            f"{path} holds {state['done']} of {values.shape[0]} test examples: the call that writes it "
            "has not come to its end. Make it again, with the same `store`, and it goes on there."
        )
    arrays = {name: zarr.open_array(str(path / name), mode="r")[:] for name in ARRAYS}
    about = state["about"]
    return {"values": values, **arrays, **about, "parameters": tuple(about["parameters"])}


def create(path: pathlib.Path, shape: tuple[int, int], dtype: str, state: dict[str, Any]) -> None:
    """A store with no scores yet, (n_test, n_train), there whole or not at all.

    Another call may have made it in the meantime: then that is the store.
    """
    block = state["block"]
    chunks = (block, min(shape[1], max(1, _CHUNK // block)))
    partial = storage.beside(path)
    partial.mkdir()
    try:
        _array(partial / "values", shape, chunks, dtype, fill_value=np.nan)
        for name in ARRAYS:
            fill = _UNKNOWN.get(name, 0)
            _array(partial / name, shape[:1], chunks[:1], _TYPES[name], fill_value=fill)
        write_state(partial, state)
        try:
            os.replace(partial, path)
        except OSError:
            if read_state(path) is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Keep other calls from writing to a store, of this and of other processes.

    The system lets go of it when a process ends, however it ends.

    Raises:
        RuntimeError: another call is writing to it.
    """
    if sys.platform == "win32":  # Where such a lock would also keep readers out.
        yield
        return
    import fcntl

    # A file of the store that is never written again; open to write, as locks over NFS ask for.
    with (path / "values" / "zarr.json").open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise RuntimeError(
                f"`store` is being filled by another call, which has not ended: {os.fspath(path)!r}. "
                "Wait for it, or end its process: what it has done is kept, and the same call goes "
                "on there. Or choose another `store`."
            ) from error
        except OSError:
            pass  # A file system without locks, as some of clusters are.
        yield


def open_arrays(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of a store, to be written to."""
    names = ("values", *ARRAYS)
    return {name: zarr_package().open_array(str(path / name), mode="r+") for name in names}


def remove_leftovers(path: pathlib.Path, block: int) -> None:
    """The files of a block that was cut off: Zarr may read those that it is to write anew."""
    for name in ("values", *ARRAYS):
        chunk = path / name / "c" / str(block)
        shutil.rmtree(chunk, ignore_errors=True)
        with contextlib.suppress(OSError):
            chunk.unlink()
    for partial in path.glob("*.partial"):
        partial.unlink()


def _array(
    path: pathlib.Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, **options: Any
) -> None:
    # Scores are all digits and no pattern: compression would save a tenth, and take time.
    zarr_package().create_array(
        str(path), shape=shape, chunks=chunks, dtype=dtype, compressors=None, **options
    )


def in_chunks(
    parts: Iterator[tuple[slice, np.ndarray]], width: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Columns that come in parts, in parts of `width`, so that each chunk is written once."""
    start, filled, chunk = 0, 0, np.empty((0, 0))
    for _, part in parts:
        if not chunk.size:
            chunk = np.empty((len(part), width), part.dtype)
        while part.shape[1]:
            some = part[:, : width - filled]
            chunk[:, filled : filled + some.shape[1]] = some
            filled, part = filled + some.shape[1], part[:, some.shape[1] :]
            if filled == width:
                yield slice(start, start + width), chunk
                start, filled = start + width, 0
    if filled:
        yield slice(start, start + filled), chunk[:, :filled]


def read_state(path: pathlib.Path) -> dict[str, Any] | None:
    """What the attributes of a store say; None if this is none."""
    try:
        return json.loads((path / "zarr.json").read_text())["attributes"][_NAME]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_state(path: pathlib.Path, state: dict[str, Any]) -> None:
    """Let the attributes of a store say this, from one moment to the next."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {_NAME: state}}
    with storage.writing(path / "zarr.json") as file:
        file.write(storage.as_json(group).encode())


def zarr_package() -> Any:
    """The package, which is slow to import and not needed elsewhere."""
    try:
        return importlib.import_module("zarr")
    except ImportError as error:
        raise ImportError(
            'Scores in a store need zarr 3: pip install "keras-influence[store]"'
        ) from error
