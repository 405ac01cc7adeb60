"""Derivatives of a function that takes each row by itself, held against differences row by row.

A difference may cross a kink and says nothing then: it is believed only if half its step gives the same, and
what is before and what is behind do. Just at a kink half of the step gives the same, half the slope. What
rounding makes alike by chance it does not make so along one direction after the other. Where a function is
saturated for a row, as a sigmoid, all numbers there are rounding: what is off is held against what there is in
other rows too, and against what their differences differ by.
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
# Directions along which a row has to be wrong.
_DIRECTIONS = 3


def drawn(rng, like):
    """Normal numbers, a tensor for each of some tensors."""
    return [tf.constant(rng.standard_normal(t.shape), t.dtype) for t in like]


def along(rng, at):
    """A direction that changes each number by a part of itself: what is positive stays so."""
    return [a * t for a, t in zip(drawn(rng, at), at)]


def wrong_each_time(rows_along, rng, at):
    """Rows that a function of a direction finds along each of some."""
    rows = rows_along(along(rng, at))
    for _ in range(1, _DIRECTIONS):
        if rows.size:
            rows = np.intersect1d(rows, rows_along(along(rng, at)))
    return rows


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
    miss = _MISS[r[0].dtype.size] * _with_others(np.maximum(abs(a), abs(b)))
    sizes = paired(r, r) * paired(pushed, pushed) + paired(straight, straight) * paired(d, d)
    sizes = np.sqrt(sizes) + paired([tf.abs(f) for f in outputs], [tf.abs(e) for e in r])
    rounding = _ROUNDINGS * np.finfo(r[0].dtype.as_numpy_dtype).eps * sizes
    return np.flatnonzero(np.abs(a - b) > miss + rounding)


def _wrong(function, at, d, image, size):
    """Rows in which differences of a function agree with each other, and not with `image`.

    Args:
        size: of its values in each row.
    """
    width = at[0].dtype.size
    step = _STEP[width]

    def values(h):
        return [_rows(part) for part in function([t + h * e for t, e in zip(at, d)])]

    here, image = values(0.0), [_rows(part) for part in image]
    sides = [(values(h), values(-h), h) for h in (step, step / 2)]
    wide, narrow = ([(a - b) / (2 * h) for a, b in zip(*pair)] for *pair, h in sides)
    ahead, behind, half = sides[1]
    bent = [(a - 2 * c + b) / half for a, b, c in zip(ahead, behind, here)]
    off, apart = (_lengths(a - b for a, b in zip(narrow, t)) for t in (image, wide))
    apart = np.maximum(apart, _lengths(bent))
    rounding = _ROUNDINGS * np.finfo(at[0].dtype.as_numpy_dtype).eps / step * size
    miss = _MISS[width] * _with_others(np.maximum(_lengths(narrow), _lengths(image)))
    beyond = _BEYOND * (apart + np.median(apart))
    return np.flatnonzero((off > miss + rounding) & (off > beyond))


def _with_others(sizes):
    """The sizes of rows, and to each what they are on the average."""
    return sizes + np.sqrt(np.mean(np.square(sizes)))


def _lengths(parts):
    return np.sqrt(sum(np.sum(np.square(part), 1) for part in parts))


def _rows(tensor):
    array = np.asarray(tensor, np.float64)
    return array.reshape(len(array), -1)
