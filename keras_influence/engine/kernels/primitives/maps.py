"""Products of matrices in vectorised maps, kept from shapes in which TensorFlow corrupts memory.

A map over n examples of x w, with (1, T, F) and (F, O) for each, makes (n, 1, T, F) and (F, O); a map over k
vectors makes (k, b, T, F) and (F, O), or (1, b, F, O), of a batch that may hold one example. With an axis of
one next to the matrices on the left, one matrix on the right and some dozens of products TensorFlow with
oneDNN ends the process, or gives NaN. One axis more and it does not, in the same time.
"""

import tensorflow as tf
from tensorflow.python.ops import math_ops  # The module in which maps look for products.

# Axes of what is affected: with one more or less no shape is.
_RANK = 4


def _matmul(original, a, b, *args, **kwargs):
    if not _may_be_affected(a, b):
        return original(a, b, *args, **kwargs)
    product = original(tf.expand_dims(a, -3), tf.expand_dims(b, -3), *args, **kwargs)
    return tf.squeeze(product, [-3])


def _may_be_affected(a, b):
    """Whether, as far as is known, an axis of one may stand next to the matrices of `a`, with one matrix in `b`."""
    if not (tf.is_tensor(a) and tf.is_tensor(b)) or None in (a.shape.rank, b.shape.rank):
        return False
    one = all(size in (1, None) for size in (a.shape[-3:-2] + b.shape[:-2]))
    return one and a.shape.rank == _RANK >= b.shape.rank


FUNCTIONS = {(math_ops, "matmul"): _matmul}
