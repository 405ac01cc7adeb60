"""A plain value as a text, the same in each process and after a file."""

import enum
import types
import zlib

import numpy as np
import tensorflow as tf

from keras_influence.described.functions import is_users

_NUMBERS = (bool, int, float, np.number, np.bool_)
# Of a list, how many items are looked at.
MOST_ITEMS = 4096
# How many numbers are written out, and how the text of more begins that another machine may round otherwise.
_FEW, ROUNDED = 16, "rounded"


def text_of(value):
    """A plain value as a text; None of what is none."""
    if value is None or isinstance(value, (str, bytes, complex)):
        return repr(value)
    if isinstance(value, _NUMBERS):
        return _of_number(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tf.Tensor):
        return _of_array(value.numpy()) if hasattr(value, "numpy") else None
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, types.FunctionType) and not is_users(value):
        return value.__name__
    if isinstance(value, (set, frozenset)):
        texts = [text_of(item) for item in value] if len(value) <= MOST_ITEMS else []
        return None if None in texts else repr((len(value), sorted(texts)))
    return _of_list(value) if isinstance(value, (list, tuple)) else None


def _of_list(value):
    """One of plain values, a long one by some of them."""
    some = list(value)[:: 1 + len(value) // MOST_ITEMS]
    if len(some) == len(value) and all(isinstance(item, _NUMBERS) for item in some):
        return _of_numbers((len(some),), some)
    texts = [text_of(item) for item in some]
    return None if None in texts else repr((len(value), texts))


def _of_array(array):
    if array.ndim == 0:
        return text_of(array.item())
    if array.dtype.kind in "biuf":
        return _of_numbers(array.shape, array.ravel())
    return repr((array.shape, zlib.crc32(repr(array.tolist()).encode())))


def _of_numbers(shape, values):
    """A few in words; of many a checksum, which says whether it is of fractions."""
    if len(values) <= _FEW:
        return repr((shape, [_of_number(value) for value in values]))
    array = np.ascontiguousarray(values, np.float64)
    whole = np.array_equal(array, np.rint(array))
    return f"{'whole' if whole else ROUNDED} {shape} {zlib.crc32(array.tobytes())}"


def _of_number(value):
    value = float(value)
    # Whole ones to the last digit; others as they come back from files, and from other machines.
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
