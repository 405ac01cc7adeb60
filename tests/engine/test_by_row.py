"""Which rows have wrong derivatives: those that were made wrong, and none for kinks or rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.layers import by_row

ops = keras.ops
ROWS = 2000
WRONG = np.arange(5, ROWS, 50)


def looked_at(function, look, width=4, scale=1.0):
    """The rows that a look finds wrong for a function of some linear combinations of 20 numbers, in float32."""
    rng = np.random.default_rng(0)
    weights = tf.constant(rng.normal(size=(20, width)) / 4, tf.float32)
    at = [tf.constant(scale * rng.normal(size=(ROWS, 20)), tf.float32)]

    def given(at):
        return [function(at[0] @ weights)]

    r = [tf.constant(rng.normal(size=t.shape), tf.float32) for t in given(at)]

    def squares(at):
        return sum(tf.reduce_sum(f**2 * e) for f, e in zip(given(at), r))

    looks = {
        "values": lambda d: by_row.wrong_values(given, at, r, d),
        "slopes": lambda d: by_row.wrong_slopes(squares, at, d),
        "transpose": lambda d: by_row.wrong_transpose(given, at, r, d),
    }
    return by_row.wrong_each_time(looks[look], np.random.default_rng(0), at)


def in_some_rows(rare, plain):
    """One function of the rows that are to be wrong, another of the others."""
    where = np.isin(np.arange(ROWS), WRONG)[:, None]
    return lambda t: tf.where(where, rare(t), plain(t))


@tf.custom_gradient
def stopped(t):
    return tf.tanh(t), lambda upstream: upstream * tf.stop_gradient(1 - tf.tanh(t) ** 2)


@tf.custom_gradient
def detached(t):
    return tf.tanh(t), tf.stop_gradient


@pytest.mark.parametrize(
    "look, fault", [("values", tf.stop_gradient), ("slopes", stopped), ("transpose", detached)]
)
def test_what_was_made_wrong_is_found(look, fault):
    found = looked_at(in_some_rows(fault, tf.tanh), look)
    assert np.isin(found, WRONG).all()
    # Along one of three directions a row may hardly change, which says nothing of it.
    assert len(found) > 0.8 * len(WRONG)


def one_length(t):
    return t / ops.sqrt(ops.sum(t**2, -1, keepdims=True) + 1e-12)


@pytest.mark.parametrize("look", ["values", "slopes", "transpose"])
@pytest.mark.parametrize(
    "function, width, scale",
    [
        (ops.relu, 64, 1.0),
        (lambda t: ops.softmax(5 * t, -1), 64, 10.0),
        (lambda t: ops.softmax(5 * t, -1), 64, 100.0),
        (lambda t: ops.sin(30 * t), 4, 100.0),
        (one_length, 1, 10.0),
    ],
    ids=["kinks", "saturated", "more so", "too fast", "cancelling"],
)
def test_kinks_and_rounding_are_not(function, width, scale, look):
    assert not looked_at(function, look, width, scale).size
