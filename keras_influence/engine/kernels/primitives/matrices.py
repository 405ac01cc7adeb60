"""Products of many rows with one matrix, whose gradients TensorFlow makes one by one.

A dense layer on sequences multiplies (..., m, k) by (k, n). TensorFlow's gradient with respect to
the matrix is one for each of the leading positions and then their sum, so that in the second derivative
a vector like the matrix is copied to each of them. Here all rows stand under each other, for one product, as of
a layer without such positions, and one in each of its derivatives.
"""

import tensorflow as tf


def _batch_mat_mul(original, op, upstream):
    x, matrix = op.inputs
    if matrix.shape.rank != 2 or op.get_attr("adj_x") or x.dtype.is_complex:
        return original(op, upstream)
    turned = op.get_attr("adj_y")
    rows, slopes = (tf.reshape(t, [-1, t.shape[-1] or tf.shape(t)[-1]]) for t in (x, upstream))
    back = tf.matmul(slopes, matrix, transpose_b=not turned)
    pair = (slopes, rows) if turned else (rows, slopes)
    return tf.reshape(back, tf.shape(x)), tf.matmul(*pair, transpose_a=True)


GRADIENTS = {"BatchMatMulV2": _batch_mat_mul}
