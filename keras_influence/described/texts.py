"""A plain value as a text, the same in each process and after a file."""

import enum
import pathlib
import zlib

import numpy as np
import tensorflow as tf

_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_)
_TEXTS = (str, bytes, complex, np.complexfloating, np.datetime64, np.timedelta64, pathlib.PurePath)
# Of a list, how many items are looked at.
MOST_ITEMS = 4096
# How many numbers are written out, and how the text of more begins that another machine may round otherwise.
_FEW, ROUNDED = 16, "rounded"
# Numbers of which a checksum is made at once, so that they stay in the cache.
_TOGETHER = 2**15
# Digits of fractions: as they come back from files and from other machines, and all of them.
_ROUND, EXACT = 6, 17


def text_of(value, digits=_ROUND):
    """A plain value as a text; None of what is none."""
    if value is None or isinstance(value, _TEXTS):
        return repr(value)
    if isinstance(value, _NUMBERS):
        return _of_number(value, digits)
    if isinstance(value, enum.Enum):
        return value.name or repr(value)
    if isinstance(value, tf.Tensor):
        return _of_array(value.numpy(), digits) if hasattr(value, "numpy") else None
    if isinstance(value, np.ndarray):
        return _of_array(value, digits)
    if isinstance(value, (set, frozenset)):
        texts = [text_of(v, digits) for v in value] if len(value) <= MOST_ITEMS else []
        return None if None in texts else repr((len(value), sorted(texts)))
    return _of_list(value, digits) if isinstance(value, (list, tuple)) else None


def _of_list(value, digits):
    """One of plain values, a long one by some of them."""
    some = list(value)[:: 1 + len(value) // MOST_ITEMS]
    if len(some) == len(value) and all(isinstance(item, _NUMBERS) for item in some):
        return _of_numbers((len(some),), some, digits)
    texts = [text_of(item, digits) for item in some]
    return None if None in texts else repr((len(value), texts))


def _of_array(array, digits):
    if array.ndim == 0:
        return text_of(array.item(), digits)
    if array.dtype.kind in "biuf":
        return _of_numbers(array.shape, array.ravel(), digits)
    items = array.ravel().tolist()
    if array.dtype.hasobject:  # Not where they lie in memory.
        items = [text_of(item, digits) for item in items]
    return repr((array.shape, zlib.crc32(repr(items).encode())))


def _of_numbers(shape, values, digits):
    """A few in words; of many a checksum, which says whether it is of fractions."""
    if len(values) <= _FEW:
        return repr((shape, [_of_number(value, digits) for value in values]))
    whole, checksum = True, 0
    for start in range(0, len(values), _TOGETHER):
        some = np.ascontiguousarray(values[start : start + _TOGETHER], np.float64)
        whole = whole and np.array_equal(some, np.rint(some))
        checksum = zlib.crc32(some, checksum)
    return f"{'whole' if whole else ROUNDED} {shape} {checksum}"


def _of_number(value, digits):
    """A whole one to the last digit, whether it is an integer or not."""
    if isinstance(value, (int, np.integer)) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return f"{value:.{digits}g}"
