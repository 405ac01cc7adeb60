"""What a convolution multiplies: the patches of its input, against slices of a padded array."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.layers import views

layers = keras.layers


def _padded(x, size, strides, padding):
    """TensorFlow's padding: as much as the last patch needs, the odd one behind."""
    if padding == "valid":
        return x
    pads = [(0, 0)]
    for n, k, s in zip(x.shape[1:-1], size, strides):
        whole = max((-(-n // s) - 1) * s + k - n, 0)
        pads.append((whole // 2, whole - whole // 2))
    return np.pad(x, [*pads, (0, 0)])


def _patches(x, size, strides, padding, rate=1):
    reach = [rate * (k - 1) + 1 for k in size]
    x = _padded(x, reach, strides, padding)
    counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], reach, strides)]
    found = np.empty((len(x), *counts, np.prod(size) * x.shape[-1]), x.dtype)
    for place in np.ndindex(*counts):
        where = [slice(i * s, i * s + k, rate) for i, k, s in zip(place, reach, strides)]
        found[(slice(None), *place)] = x[(slice(None), *where)].reshape(len(x), -1)
    return found.reshape(len(x), -1, found.shape[-1])


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("shape", "size", "strides"),
    [
        ((9, 8, 3), (3, 3), (1, 1)),
        ((9, 8, 3), (2, 3), (2, 1)),
        ((7, 7, 1), (5, 5), (3, 3)),
        ((6, 6, 20), (3, 3), (1, 1)),
        ((11, 2), (4,), (2,)),
        ((11, 2), (1,), (3,)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_patches_are_those_of_the_input_to_the_bit(
    shape, size, strides, padding, dtype, gpu, rng, monkeypatch
):
    """By whichever operation: one is taken of few numbers, and not where a GPU might round."""
    monkeypatch.setattr(views, "_has_gpu", lambda: gpu)
    kind = layers.Conv1D if len(size) == 1 else layers.Conv2D
    layer = kind(4, size, strides, padding, dtype=dtype)
    x = rng.normal(size=(2, *shape)).astype(dtype)
    layer(x)
    found = views.input_rows(layer, tf.constant(x)).numpy()
    assert found.dtype == dtype
    assert np.array_equal(found, _patches(x, size, strides, padding))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("shape", "size"), [((9, 8, 3), (3, 3)), ((11, 2), (4,))])
def test_patches_with_gaps(shape, size, padding, rng):
    kind = layers.Conv1D if len(size) == 1 else layers.Conv2D
    layer, x = kind(4, size, padding=padding, dilation_rate=2), rng.normal(size=(2, *shape))
    x = x.astype("float32")
    layer(x)
    found = views.input_rows(layer, tf.constant(x)).numpy()
    assert np.array_equal(found, _patches(x, size, [1] * len(size), padding, rate=2))


@pytest.mark.parametrize("gpu", [False, True])
def test_a_convolution_cuts_out_small_patches_where_nothing_rounds(gpu, rng, monkeypatch):
    monkeypatch.setattr(views, "_has_gpu", lambda: gpu)
    layer, x = layers.Conv2D(4, 3), tf.constant(rng.normal(size=(2, 6, 6, 3)), tf.float32)
    layer(x)
    traced = tf.function(lambda t: views.input_rows(layer, t)).get_concrete_function(x)
    kinds = {op.type for op in traced.graph.get_operations()}
    assert ("Conv2D" in kinds) is not gpu and ("ExtractImagePatches" in kinds) is gpu
