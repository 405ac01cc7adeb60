"""Structures of tensors that have one row per example: how many, which ones, joined, made dense.

Sparse tensors are kept sparse until a batch is handed out.
"""

import math

import numpy as np
import tensorflow as tf

# Bytes that a string may have.
_STRING = 64


def size(batch):
    """Number of examples."""
    return int(tf.nest.flatten(batch)[0].shape[0])


def nbytes(batch):
    """Bytes of dense tensors, about where there are strings."""
    leaves = tf.nest.flatten(batch)
    return sum(t.shape.num_elements() * (t.dtype.size or _STRING) for t in leaves)


def take(batch, positions):
    """The rows at these positions, in that order; one may come twice."""
    return tf.nest.map_structure(lambda t: _taken(t, positions), batch)


def joined(batches):
    """The rows of several batches one after another; their `layout` must be the same."""
    return batches[0] if len(batches) == 1 else tf.nest.map_structure(_concatenated, *batches)


def split(whole, batch_size):
    """Batches of this size, the last one smaller; most share the memory of the whole."""
    n = size(whole)
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    leaves = [_cut(leaf, sizes) for leaf in tf.nest.flatten(whole)]
    return [tf.nest.pack_sequence_as(whole, parts) for parts in zip(*leaves)]


def dense(batch):
    """The same numbers with no sparse tensor among them."""
    return tf.nest.map_structure(_dense, batch)


def layout(batch):
    """The shape of one row of each tensor: batches where it is the same can be joined."""
    return tuple(tuple(t.shape[1:]) for t in tf.nest.flatten(batch))


def times_as_wide(layout, other):
    """How many times as many numbers a row has, in the tensor of which that is most."""
    pairs = [(math.prod(a), math.prod(b)) for a, b in zip(layout, other)]
    return max(a / max(b, 1) for a, b in pairs)


def open_spec(batch):
    """Specs of dense tensors like these, with no size known."""
    return tf.nest.map_structure(lambda t: tf.TensorSpec([None] * t.shape.rank, t.dtype), batch)


def _taken(tensor, positions):
    if not isinstance(tensor, tf.SparseTensor):
        return tf.gather(tensor, positions)
    indices = tensor.indices.numpy()
    order = np.argsort(indices[:, 0], kind="stable")
    first = np.searchsorted(indices[order, 0], np.arange(tensor.shape[0] + 1))
    counts = (first[1:] - first[:-1])[positions]
    # Entry k of a row that is taken to place i: at first[row] + k among all, in row i of the result.
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    entries = order[np.repeat(first[:-1][positions], counts) + within]
    moved = np.column_stack([np.repeat(np.arange(len(counts)), counts), indices[entries, 1:]])
    values = tf.gather(tensor.values, entries)
    return tf.SparseTensor(moved, values, [len(counts), *tensor.shape[1:]])


def _concatenated(*tensors):
    if isinstance(tensors[0], tf.SparseTensor):
        return tf.sparse.concat(0, list(tensors))
    return tf.concat(tensors, 0)


def _cut(tensor, sizes):
    if not isinstance(tensor, tf.SparseTensor):
        return tf.split(tensor, sizes)
    order = np.argsort(tensor.indices.numpy()[:, 0], kind="stable")
    indices, values = tensor.indices.numpy()[order], tensor.values.numpy()[order]
    starts = np.cumsum([0, *sizes])
    stops = np.searchsorted(indices[:, 0], starts)
    parts = []
    for start, n, here in zip(starts, sizes, map(slice, stops, stops[1:])):
        indices[here, 0] -= start
        parts.append(tf.SparseTensor(indices[here], values[here], [n, *tensor.shape[1:]]))
    return parts


def _dense(tensor):
    if not isinstance(tensor, tf.SparseTensor):
        return tensor
    if tensor.dtype in (tf.string, tf.bool):
        return tf.sparse.to_dense(tf.sparse.reorder(tensor))
    # Entries of the same place add up, as they do in a product with the sparse matrix.
    return tf.scatter_nd(tensor.indices, tensor.values, tensor.dense_shape)
