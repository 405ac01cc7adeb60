"""Files that are there whole or not at all."""

import contextlib
import json
import os
import pathlib
import secrets
import zipfile
import zlib

import numpy as np


@contextlib.contextmanager
def writing(path):
    """Open a file to write to; it takes the place of `path` at the end, or nothing happens.

    What is written goes to a file beside it, so that neither an exception, a full disk nor a
    lost process leaves half a file. Its mode is that of any new file (the umask's).

    Args:
        path: file name; its folder must exist. A link is followed, and stays.

    Yields:
        A binary file.

    Raises:
        FileNotFoundError: the folder does not exist.
        IsADirectoryError: there is a folder of that name.
    """
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"`path` should be in a folder that exists. Received: {os.fspath(path)!r}"
        )
    check_file(target)
    partial = beside(target)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def beside(path):
    """The path of what is to become `path` when it is whole, which nobody else takes."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def check_file(path):
    """Raise an `IsADirectoryError` where a file cannot be written, for there is a folder of that name."""
    if pathlib.Path(path).is_dir():
        raise IsADirectoryError(
            f"`path` should be the name of a file. Received: {os.fspath(path)!r}, which is a folder"
        )


def write_arrays(path, arrays):
    """Write a dict of arrays to one compressed `.npz` file, without pickle.

    Args:
        path: file name; `.npz` is added if it is missing.
        arrays: dict from names to arrays, none of which is made of objects.
    """
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise TypeError(f"arrays of Python objects cannot be written: {', '.join(objects)}")
    with writing(_npz(path)) as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path, writer, needed=()):
    """Read what `write_arrays` wrote, as a dict.

    Args:
        path: the name that `write_arrays` was given, or that of the file.
        writer: what wrote it, for messages, such as "InfluenceScores.save".
        needed: names that must be there.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `path` is no name of a file.
        ValueError: it is damaged, or something else wrote it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"`path` should be the name of a file written by {writer}. "
            f"Received: an object of type {type(path).__name__}"
        )
    path = pathlib.Path(path)
    expected = f"`path` should be a file written by {writer}"
    found = [known for known in (path, _npz(path)) if known.exists() and not known.is_dir()]
    if not found and path.is_dir():
        raise ValueError(
            f"{expected}; {path} is a folder. One that `influence(..., store=)` wrote is read by "
            "`InfluenceScores.open`."
        )
    if not found:
        raise FileNotFoundError(f"{expected}; there is no {path}.")
    path = found[0]
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array")
        with file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy takes what it does not know for a pickle, and advises to load it unsafely.
        why = "it is no .npz file" if "pickle" in str(error) else str(error)
        raise ValueError(f"{expected}; {path} is not, or is damaged: {why}") from error
    missing = sorted(set(needed) - set(arrays))
    if missing:
        raise ValueError(f"{expected}; {path} lacks {', '.join(missing)}.")
    return arrays


def as_json(value):
    """Settings as JSON text; NumPy's scalars count as numbers."""
    return json.dumps(value, default=_plain)


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _npz(path):
    path = pathlib.Path(path)
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
