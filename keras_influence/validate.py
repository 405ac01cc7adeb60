"""Checks of arguments that many rooms share: numbers and positions, with errors that name them."""

import os
import pathlib

import numpy as np


def check_number(name, value, low=0, integer=False, strict=False, optional=False):
    """Raise unless `value` is a finite number >= `low` (> `low` if `strict`)."""
    if optional and value is None:
        return
    kind = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    relation = ">" if strict else ">="
    expected = f"`{name}` should be {'an integer' if integer else 'a number'} {relation} {low}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{expected}. Received: {name}={value!r}")
    if not np.isfinite(value) or value < low or (strict and value == low):
        raise ValueError(f"{expected}. Received: {name}={value!r}")


def check_batch_size(batch_size):
    """Raise unless `batch_size` is None or an integer >= 1."""
    check_number("batch_size", batch_size, low=1, integer=True, optional=True)


def check_class_weight(class_weight):
    """Raise unless `class_weight` is None or a dict from class index to a number >= 0."""
    if class_weight is None:
        return
    expected = "`class_weight` should be a dict from class index to a number >= 0"
    if not isinstance(class_weight, dict):
        raise TypeError(f"{expected}. Received: {class_weight!r}")
    for label, weight in class_weight.items():
        good = isinstance(weight, (int, float, np.number)) and np.isfinite(weight) and weight >= 0
        if not isinstance(label, (int, np.integer)) or not good:
            raise ValueError(f"{expected}. Received: {class_weight!r}")


def as_indices(value, n, name, data="train"):
    """Positions in the data, in the order given, from positions or a boolean mask."""
    expected = f"`{name}` should be positions in `{data}`, integers from 0 to {n - 1}, or a mask"
    try:
        array = np.asarray(value)
    except ValueError as error:  # Pieces of several sizes.
        raise TypeError(f"{expected}. Received: {type(value).__name__} of {error}") from error
    if array.dtype == bool and array.shape == (n,):
        array = np.flatnonzero(array)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(
            f"{expected}. Received: {type(value).__name__} of dtype {array.dtype} and shape {array.shape}"
        )
    if not array.size or array.min() < 0 or array.max() >= n:
        raise ValueError(f"{expected}. Received: {np.array2string(array, threshold=6)}")
    # TensorFlow gathers by no other integers than these and some smaller ones.
    return array.astype(np.int64)


def as_positions(group, n, name, data="train"):
    """`as_indices` of examples that are taken together: each of them once."""
    array = as_indices(group, n, name, data)
    if len(np.unique(array)) < len(array):
        mask = len(array) == n and set(np.unique(array)) <= {0, 1}
        hint = " If it is a mask of zeros and ones, give `mask.astype(bool)`." if mask else ""
        raise ValueError(f"`{name}` should name each example once, but has duplicates.{hint}")
    return array


def check_folder(name, path):
    """Raise unless `path` is None, or a path where there is no file."""
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`{name}` should be the path of a folder. Received: {name}={path!r}")
    if path is not None and pathlib.Path(path).is_file():
        raise ValueError(f"`{name}` should be a folder. Received: {str(path)!r}, which is a file.")
