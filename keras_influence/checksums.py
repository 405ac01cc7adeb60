"""Fingerprints of what a result depends on: weights, data, models and functions."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import zlib

import keras
import numpy as np
import tensorflow as tf

# What Keras numbers anew for each model of a process, and what follows from that.
_NAMES = ("name", "inbound_nodes", "input_layers", "output_layers", "shared_object_id")
# Hexadecimal digits of a fingerprint: 64 bits.
_DIGITS = 16
# Columns of each tensor that `quick_fingerprint` looks at.
_COLUMNS = 16


def fingerprint_of_weights(variables):
    """A checksum of the values, shapes and dtypes of some variables or arrays."""
    digest = hashlib.sha256()
    for variable in variables:
        array = np.asarray(variable)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()[:_DIGITS]


def fingerprint_of_batches(batches):
    """A checksum of all values, dtypes and shapes of some data, whatever the batches are.

    Args:
        batches: iterable of structures of tensors; ragged and sparse tensors too.
    """
    digests = {}
    for batch in batches:
        for i, part in enumerate(_parts(batch)):
            digest = digests.setdefault(i, hashlib.sha256(f"{part.dtype}{part.shape[1:]}".encode()))
            digest.update(_bytes(part))
    return "-".join(digest.hexdigest()[:_DIGITS] for digest in digests.values())


def quick_fingerprint(batch):
    """A checksum of a sample of each tensor's columns of one batch: cheap, and it sees the order."""
    checksum = 0
    for part in _parts(batch):
        # Not -1: an empty batch has no number of columns to find.
        rows = part.reshape(len(part), math.prod(part.shape[1:]))
        sample = rows[:, :: max(1, rows.shape[1] // _COLUMNS)]
        checksum = zlib.crc32(_bytes(sample), zlib.crc32(str(part.shape).encode(), checksum))
    return checksum


def fingerprint_of_model(model):
    """A checksum of a model's architecture and compile state; names and weights apart."""
    shapes = [(tuple(v.shape), str(v.dtype)) for v in model.variables]
    config = _without_names(keras.saving.serialize_keras_object(model))
    text = json.dumps([shapes, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def fingerprint_of_function(function):
    """A checksum of a function: its source, and the plain values and functions it closes over.

    Where there is no source, as for a built-in or an object with `__call__`, its name or its
    class's source stands for it. None for None.
    """
    if function is None:
        return None
    return hashlib.sha256(repr(_described(function)).encode()).hexdigest()[:_DIGITS]


def _parts(batch):
    """The tensors of a batch as arrays, with no sign in them of where the batch begins."""
    for leaf in tf.nest.flatten(batch):
        if isinstance(leaf, tf.RaggedTensor):
            yield from (lengths.numpy() for lengths in leaf.nested_row_lengths())
            yield leaf.flat_values.numpy()
        elif isinstance(leaf, tf.SparseTensor):
            indices = leaf.indices.numpy()
            yield np.bincount(indices[:, 0], minlength=int(leaf.dense_shape[0]))
            yield indices[:, 1:]
            yield leaf.values.numpy()
        else:
            yield np.asarray(leaf)


def _bytes(array):
    """The values of an array as bytes; of strings the strings, not where they lie in memory."""
    if array.dtype.hasobject:
        texts = (t if isinstance(t, bytes) else str(t).encode() for t in array.ravel())
        return b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return np.ascontiguousarray(array).tobytes()


def _described(value, depth=4):
    """A function, or what one holds, as nested tuples of text that is the same in each process."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        return repr(value)
    if isinstance(value, (tuple, frozenset)):
        parts = [_described(v, depth) for v in value]
        return tuple(sorted(parts, key=repr) if isinstance(value, frozenset) else parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and depth:
        held = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
        return type(value).__qualname__, _described(held, depth)
    if not callable(value) or not depth:
        # What may change as the function runs is no part of what it is.
        return type(value).__qualname__
    if isinstance(value, functools.partial):
        arguments = (*value.args, *sorted(value.keywords.items()))
        return _described(value.func, depth - 1), _described(arguments, depth - 1)
    value = inspect.unwrap(value)
    function = getattr(value, "__func__", value)
    held = [*(getattr(function, "__defaults__", None) or ()), *_closure(function)]
    return _source(value), _described(tuple(held), depth - 1)


def _closure(function):
    """What a function closes over, as far as it has a value yet."""
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def _source(function):
    for source in (function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(source)
    return getattr(function, "__qualname__", type(function).__qualname__)


def _without_names(config):
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k not in _NAMES}
    if isinstance(config, (list, tuple)):
        return [_without_names(item) for item in config]
    return config
