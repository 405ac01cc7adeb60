"""Products of matrices in a vectorised map over examples, without an axis of one that the map has made.

With a product x w of a batch of one, (1, T, F) with (F, O), a map over n examples makes (n, 1, T, F) with
(F, O). TensorFlow with oneDNN corrupts memory in that, or gives NaN, from some dozens of examples on.
"""

import tensorflow as tf
from tensorflow.python.ops import math_ops  # The module in which maps look for products.


def _matmul(original, a, b, *args, **kwargs):
    if not _is_affected(a, b):
        return original(a, b, *args, **kwargs)
    matrix = tf.reshape(b, tf.shape(b)[-2:])
    product = original(tf.squeeze(a, [-3]), matrix, *args, **kwargs)
    return tf.expand_dims(product, -3)


def _is_affected(a, b):
    """Whether there is an axis of one next to the matrices of `a`, and `b` is one matrix for all of them."""
    if not (tf.is_tensor(a) and tf.is_tensor(b)) or None in (a.shape.rank, b.shape.rank):
        return False
    one = all(size == 1 for size in b.shape[:-2])
    return one and a.shape.rank >= max(4, b.shape.rank) and a.shape[-3] == 1


FUNCTIONS = {(math_ops, "matmul"): _matmul}
