"""Products whose factors may be zero, and determinants of matrices that may be singular.

TensorFlow differentiates products through quotients, which it takes to be 0 where the factor
is 0: in the first derivative of `cumprod`, in the second of `reduce_prod`. The gradient of a
determinant needs the inverse matrix. Here the gradients are those of the same products,
multiplied in another order: polynomials, right everywhere and as often as one likes.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels.primitives.taped import gradient_of

# n² determinants of one row and column less: more rows are left to TensorFlow.
_ROWS = 4
# Steps, each twice as far, for an axis whose length is not known: enough for 2³⁰ factors.
_STEPS = 30


def _prod(original, op, upstream):
    x, axes = op.inputs[0], tf.get_static_value(op.inputs[1])
    if axes is None or x.shape.rank is None or any(not x.shape[a] for a in np.ravel(axes)):
        return original(op, upstream)  # By `cumprod`, and so by what stands below.

    def product(x):
        for axis in np.ravel(axes):
            x = _folded(x, int(axis))
        return x

    return *gradient_of(product, [x], upstream), None


def _folded(x, axis):
    """Π along an axis of known length, in halves."""
    while (n := x.shape[axis]) > 1:
        first, second, rest = tf.split(x, [n // 2, n // 2, n % 2], axis)
        x = tf.concat([first * second, rest], axis)
    return x


def _cumprod(original, op, upstream):
    x, axis = op.inputs[0], tf.get_static_value(op.inputs[1])
    if axis is None or x.shape.rank is None:
        return original(op, upstream)
    axis = int(axis) % x.shape.rank
    order = [axis, *(i for i in range(x.shape.rank) if i != axis)]
    reverse, exclusive = op.get_attr("reverse"), op.get_attr("exclusive")

    def products(x):
        x = tf.transpose(x, order)
        x = tf.reverse(x, [0]) if reverse else x
        x = _later(x, 1) if exclusive else x
        n = x.shape[0]
        for step in range(_STEPS if n is None else int(np.ceil(np.log2(max(n, 1))))):
            x = x * _later(x, 2**step)
        x = tf.reverse(x, [0]) if reverse else x
        return tf.transpose(x, np.argsort(order))

    return *gradient_of(products, [x], upstream), None


def _later(x, steps):
    """x moved along its first axis, with ones before it."""
    return tf.concat([tf.ones_like(x[:steps]), x[:-steps]], 0)


def _determinant(original, op, upstream):
    """upstream · cofactors, which are determinants themselves."""
    x = op.inputs[0]
    n = x.shape[-1]
    if n is None or not 1 < n <= _ROWS or not x.dtype.is_floating:
        return original(op, upstream)
    without = np.array([np.delete(np.eye(n), i, 0) for i in range(n)])
    without = tf.constant(without, x.dtype)  # (i, n - 1, n): all rows but the i-th.
    minors = tf.einsum("iap,...pq,jbq->...ijab", without, x, without)
    signs = tf.constant((-1.0) ** np.add.outer(range(n), range(n)), x.dtype)
    return upstream[..., None, None] * signs * tf.linalg.det(minors)


GRADIENTS = {"Prod": _prod, "Cumprod": _cumprod, "MatrixDeterminant": _determinant}
