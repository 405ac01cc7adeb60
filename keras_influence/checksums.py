"""Fingerprints of what a result depends on: weights, data, models and functions."""

import hashlib
import json
import math
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_influence.described import ROUNDED, Values, described

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
    """A checksum of a function and of what it reads; see `described`. None for None."""
    if function is None:
        return None
    return hashlib.sha256(repr(described(function)).encode()).hexdigest()[:_DIGITS]


def values_of_function(function):
    """The plain values that a function reads, by name; see `Values`. Lists are among them."""
    values = Values()
    values.read(function, getattr(function, "__name__", type(function).__name__))
    return values.found


def fingerprints_of_values(found):
    """A checksum of the values under each name, for files, whatever their order; see `Values`.

    Not of long arrays of fractions, as a layer may compute them, which are others on another machine.
    """
    return {
        # How many they are is part of the name: what is there another number of times is not compared.
        f"{name} ({len(texts)})": hashlib.sha256(repr(sorted(texts)).encode()).hexdigest()[:_DIGITS]
        for name, texts in found.items()
        if not any(text.startswith(ROUNDED) for text in texts)
    }


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


def _without_names(config):
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k not in _NAMES}
    if isinstance(config, (list, tuple)):
        return [_without_names(item) for item in config]
    return config
