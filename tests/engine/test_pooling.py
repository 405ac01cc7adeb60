"""Max pooling: which of several equals is chosen, in all shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels import primitives
from tests import truth
from tests.engine import second

ops = keras.ops
layers = keras.layers


def _pool(size, stride, padding):
    return lambda x: ops.max_pool(x, size, stride, padding)


def _first_largest(x, size, stride, padding):
    """Flat indices of the first largest entry of each window, by loops; (windows,)."""
    n, h, w, c = x.shape
    outs = [-(-m // stride) if padding == "same" else (m - size) // stride + 1 for m in (h, w)]
    pads = [max((o - 1) * stride + size - m, 0) // 2 for o, m in zip(outs, (h, w))]
    pads = pads if padding == "same" else [0, 0]
    flat, found = np.arange(x.size).reshape(x.shape), []
    for b, i, j, k in np.ndindex(n, *outs, c):
        rows, columns = (
            slice(max(o * stride - p, 0), o * stride - p + size) for o, p in zip((i, j), pads)
        )
        window = x[b, rows, columns, k]
        found.append(flat[b, rows, columns, k].ravel()[np.argmax(window)])
    return np.array(found)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size, stride", [(2, 2), (3, 3), (3, 2), (3, 1), (2, 1)])
def test_max_pooling_of_equals_chooses_as_tensorflow_does(size, stride, padding, rng):
    """Small integers, so that most windows have ties; and what is not pooled stays out of it."""
    x = rng.integers(-2, 3, (3, 7, 6, 2)).astype(float)
    x[0, 0, 0, 0] = -np.inf
    function = _pool(size, stride, padding)
    chosen = _first_largest(x, size, stride, padding)
    u = rng.normal(size=function(x).shape)

    def pulled(x):
        return second.gradient(lambda x: tf.reduce_sum(u * function(x)), x)

    plain = pulled(tf.constant(x)).numpy()
    with primitives.replaced():
        np.testing.assert_allclose(pulled(tf.constant(x)), plain, rtol=1e-14)
    np.testing.assert_allclose(np.bincount(chosen, u.ravel(), x.size), plain.ravel(), rtol=1e-13)

    v = rng.normal(size=x.shape)
    curved = second.products(lambda x: tf.reduce_sum(u * tf.sin(function(x))), x, v[None])[0]
    slopes = -u.ravel() * np.sin(x.ravel()[chosen]) * v.ravel()[chosen]
    np.testing.assert_allclose(
        curved.ravel(), np.bincount(chosen, slopes, x.size), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("size, stride, padding", [(2, 2, "valid"), (3, 1, "same"), (3, 2, "same")])
def test_max_pooling_of_volumes(size, stride, padding, rng):
    """In float32, the only precision that there is on CPU; all entries differ by far."""
    shape = (2, 5, 4, 5, 2)
    x = rng.permutation(np.prod(shape)).reshape(shape).astype("float32")
    v = rng.normal(size=shape).astype("float32")
    function = _pool(size, stride, padding)
    found = second.products(lambda x: tf.reduce_sum(tf.square(function(x)) / 2), x, v[None])[0]
    along = function(x + 0.1 * v) - function(x)  # The choice stays; linear.
    expected = second.gradient(lambda x: tf.reduce_sum(along * function(x)), tf.constant(x)) / 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_equal_voxels_share_nothing():
    x = np.zeros((1, 2, 2, 2, 1), "float32")
    with primitives.replaced():
        found = second.gradient(lambda x: tf.reduce_sum(ops.max_pool(x, 2)), tf.constant(x))
    np.testing.assert_array_equal(found.numpy().ravel(), [1, 0, 0, 0, 0, 0, 0, 0])


def _asked(kind, image, upstream, **attributes):
    """No kernel on CPU has channels first: the gradient function is asked by itself."""
    first = [0, image.shape.rank - 1, *range(1, image.shape.rank - 1)]
    op = type("Op", (), {"inputs": [tf.transpose(image, first)]})
    op.get_attr = attributes.get
    found = primitives.GRADIENTS[kind](None, op, tf.transpose(upstream, first))
    return tf.transpose(found, np.argsort(first))


def test_channels_first_is_the_same_choice(rng):
    x = tf.constant(rng.normal(size=(2, 7, 6, 3)))

    def pooled(x):
        return tf.nn.max_pool2d(x, [3, 2], [2, 1], [[0, 0], [1, 2], [1, 0], [0, 0]])

    u = tf.constant(rng.normal(size=pooled(x).shape))
    found = _asked(
        "MaxPool",
        x,
        u,
        ksize=[1, 1, 3, 2],
        strides=[1, 1, 2, 1],
        padding="EXPLICIT",
        explicit_paddings=[0, 0, 0, 0, 1, 2, 1, 0],
        data_format=b"NCHW",
    )
    expected = second.gradient(lambda x: tf.reduce_sum(u * pooled(x)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_channels_first_in_volumes(rng):
    x = tf.constant(rng.normal(size=(2, 5, 4, 6, 3)), tf.float32)

    def pooled(x):
        return tf.nn.max_pool3d(x, [3, 2, 3], [2, 1, 1], "SAME")

    u = tf.constant(rng.normal(size=pooled(x).shape), tf.float32)
    size = {"ksize": [1, 1, 3, 2, 3], "strides": [1, 1, 2, 1, 1], "padding": b"SAME"}
    found = _asked("MaxPool3D", x, u, data_format="NCDHW", **size)
    expected = second.gradient(lambda x: tf.reduce_sum(u * pooled(x)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strides", [1, 2])
def test_models_with_overlapping_windows(strides, rng):
    pool = layers.MaxPooling2D(3, strides, "same")
    stack = [layers.Conv2D(2, 3, activation="tanh"), pool, layers.Activation("tanh")]
    model = keras.Sequential([keras.Input((6, 6, 1)), *stack, layers.Flatten(), layers.Dense(2)])
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(8, 6, 6, 1)), rng.normal(size=(8, 2))
    v = rng.normal(size=(len(truth.get_flat(model)), 2))
    found = ki.hvp(model, v, (x, y), batch_size=4)
    for column in range(2):
        expected = truth.finite_difference_hvp(model, x, y, v[:, column], step=1e-5)
        assert truth.relative_error(found[:, column], expected) < 1e-7
