"""Derivatives of a function that takes each row by itself, held against differences row by row.

A difference may cross a kink and says nothing then: it is believed only if half its step gives the same.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels.outputs import filled

# For numbers of 4 and of 8 bytes: wrong derivatives miss by so much of their size and more, and by so many
# times what two differences differ by.
_MISS, _BEYOND = {4: 1e-2, 8: 1e-3}, 10
# What is less than so many roundings is nothing.
_ROUNDINGS = 100
_STEP = {4: 1e-3, 8: 1e-4}


def drawn(rng, like):
    """Normal numbers, a tensor for each of some tensors."""
    return [tf.constant(rng.standard_normal(t.shape), t.dtype) for t in like]


def along(rng, at):
    """A direction that changes each number by a part of itself: what is positive stays so."""
    return [a * t for a, t in zip(drawn(rng, at), at)]


def slope_of(scalar, at):
    """∂scalar/∂at, zeros where it does not depend on it."""
    with tf.GradientTape() as tape:
        tape.watch(at)
        value = scalar(at)
    return filled(tape.gradient(value, at), at)


def paired(a, b):
    """Σ over tensors of ⟨a_i, b_i⟩ for each row i, (rows,)."""
    return sum(np.sum(_rows(s) * _rows(t), 1) for s, t in zip(a, b))


def wrong_values(function, at, r, d):
    """Rows in which ⟨r, f⟩ changes along d otherwise than its slope says."""
    slope = slope_of(lambda at: sum(tf.reduce_sum(f * a) for f, a in zip(function(at), r)), at)
    size = paired([tf.abs(f) for f in function(at)], [tf.abs(a) for a in r])
    return _wrong(lambda at: [paired(function(at), r)], at, d, [paired(slope, d)], size)


def wrong_slopes(scalar, at, d):
    """Rows in which the slope of a scalar changes along d otherwise than its own derivative says."""
    with tf.GradientTape() as tape:
        tape.watch(at)
        slope = slope_of(scalar, at)
    image = filled(tape.gradient(slope, at, output_gradients=d), at)
    return _wrong(lambda at: slope_of(scalar, at), at, d, image, np.sqrt(paired(slope, slope)))


def wrong_transpose(function, at, r, d):
    """Rows in which ⟨r, J d⟩ is not ⟨Jᵀr, d⟩, with J d the derivative of u ↦ Jᵀu."""
    with tf.GradientTape(persistent=True) as inner:
        inner.watch(at)
        outputs = function(at)
    with tf.GradientTape() as dual:
        u = [tf.zeros_like(f) for f in outputs]
        dual.watch(u)
        pulled = filled(inner.gradient(outputs, at, output_gradients=u), at)
    pushed = filled(dual.gradient(pulled, u, output_gradients=d), u)
    straight = filled(inner.gradient(outputs, at, output_gradients=r), at)
    a, b = paired(r, pushed), paired(straight, d)
    miss = _MISS[a.dtype.itemsize] * np.maximum(abs(a), abs(b))
    sizes = paired(r, r) * paired(pushed, pushed) + paired(straight, straight) * paired(d, d)
    rounding = _ROUNDINGS * np.finfo(a.dtype).eps * np.sqrt(sizes)
    return np.flatnonzero(np.abs(a - b) > miss + rounding)


def _wrong(function, at, d, image, size):
    """Rows in which differences of a function agree with each other, and not with `image`.

    Args:
        size: of its values in each row.
    """
    width = at[0].dtype.size
    step = _STEP[width]

    def difference(h):
        pairs = (function([t + s * h * e for t, e in zip(at, d)]) for s in (1, -1))
        return [(_rows(a) - _rows(b)) / (2 * h) for a, b in zip(*pairs)]

    wide, narrow = difference(step), difference(step / 2)
    image = [_rows(t) for t in image]
    off, apart = (_lengths(a - b for a, b in zip(narrow, t)) for t in (image, wide))
    rounding = _ROUNDINGS * np.finfo(image[0].dtype).eps / step * size
    miss = _MISS[width] * np.maximum(_lengths(narrow), _lengths(image))
    return np.flatnonzero((off > miss + rounding) & (off > _BEYOND * apart))


def _lengths(parts):
    return np.sqrt(sum(np.sum(np.square(part), 1) for part in parts))


def _rows(tensor):
    array = np.asarray(tensor)
    return array.reshape(len(array), -1)
