"""What is looked at in the arguments and in each batch before it is used."""

import numpy as np
import tensorflow as tf

PARTS = ("x", "y", "sample_weight")


def check_kinds(data, name):
    """Raise for tensors, or specs of tensors, that have no batches of plain tensors."""
    for part, label in zip(data, PARTS):
        for leaf in tf.nest.flatten(part):
            if isinstance(leaf, (tf.RaggedTensor, tf.RaggedTensorSpec)):
                raise TypeError(
                    f"`{name}` has ragged tensors in {label}, which cannot be used. Make them "
                    "dense: `.to_tensor()` for a tensor, `.map(lambda x, y: (x.to_tensor(), y))` "
                    "for a batched dataset, or `.padded_batch(...)` in place of `.batch(...)`."
                )


def check_batch(batch, name, start):
    """Raise unless a batch has as many rows in all of its parts, and finite numbers.

    Args:
        start: position of its first example in the data, for the message.
    """
    check_kinds(batch, name)
    leaves = tf.nest.flatten(batch)
    if any(t.shape.rank == 0 for t in leaves) or len({int(t.shape[0]) for t in leaves}) > 1:
        raise ValueError(
            f"`{name}` should have as many rows in x as in y and sample_weight, but a batch has "
            f"shapes {[tuple(t.shape) for t in leaves]}. Is the dataset batched? If not, add "
            "`.batch(256)`. Examples that a batch has merged, as of graphs, cannot be told apart."
        )
    for part, label in zip(batch, PARTS):
        for leaf in tf.nest.flatten(part):
            if leaf.dtype.is_floating and not _is_finite(_numbers(leaf)):
                raise ValueError(
                    f"`{name}` has NaN or infinite values in {label}, first in example "
                    f"{start + _first_bad(leaf)} (counted from 0)."
                )


def _numbers(tensor):
    return (tensor.values if isinstance(tensor, tf.SparseTensor) else tensor).numpy()


def _is_finite(array):
    """Whether all numbers are finite; the sum is quicker to look at, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _first_bad(tensor):
    bad = ~np.isfinite(_numbers(tensor))
    rows = tensor.indices.numpy()[bad] if isinstance(tensor, tf.SparseTensor) else np.argwhere(bad)
    return int(rows[:, 0].min())
