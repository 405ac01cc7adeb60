"""Products with second derivatives against differences of TensorFlow's gradients, in float64."""

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

_LABELS = np.eye(4)[[0, 2, 1]]


def _pool(size, stride, padding):
    return lambda x: ops.max_pool(x, size, stride, padding)


def _determinants(x):
    return tf.linalg.det(tf.stack([x, 2 * x @ x]))


OPERATIONS = {
    **{
        f"max_pool {size} {stride} {padding}": (_pool(size, stride, padding), (2, 7, 6, 2))
        for size, stride in ((2, 2), (3, 3), (3, 2), (3, 1), (2, 1), (2, 3), ((2, 3), (1, 2)))
        for padding in ("valid", "same")
    },
    "max_pool 1D": (_pool(3, 1, "same"), (2, 9, 2)),
    "max_pool explicit": (
        lambda x: tf.nn.max_pool2d(x - 3, 3, 2, [[0, 0], [1, 2], [1, 0], [0, 0]]),
        (2, 7, 6, 2),
    ),
    "max_pool_with_argmax": (
        lambda x: tf.nn.max_pool_with_argmax(x, 3, 1, "SAME").output,
        (2, 7, 6, 2),
    ),
    "softsign": (ops.softsign, (3, 4)),
    "tanh of sums": (lambda x: tf.tanh(tf.math.segment_sum(x, [0, 0, 1])), (3, 4)),
    "moments": (lambda x: ops.stack(ops.moments(x, [1])), (3, 4)),
    "euclidean_norm": (lambda x: tf.math.reduce_euclidean_norm(x, 1), (3, 4)),
    "labels of weights": (
        lambda x: ops.categorical_crossentropy(ops.softmax(x[:3]), x[3:], from_logits=True),
        (6, 4),
    ),
    "logits": (lambda x: ops.categorical_crossentropy(_LABELS, x, from_logits=True), (3, 4)),
    "logits of a class": (
        lambda x: ops.sparse_categorical_crossentropy(_LABELS.argmax(1), x, from_logits=True),
        (3, 4),
    ),
    "prod": (lambda x: ops.prod(x, axis=1), (3, 5)),
    "prod of all": (ops.prod, (2, 3)),
    "prod keepdims": (lambda x: ops.prod(x, axis=(0, 2), keepdims=True), (2, 3, 2)),
    "cumprod": (lambda x: ops.cumprod(x, axis=-1), (2, 5)),
    "cumprod backwards": (
        lambda x: tf.math.cumprod(x, axis=0, exclusive=True, reverse=True),
        (5, 2),
    ),
    "det 2": (_determinants, (2, 2)),
    "det 4": (_determinants, (4, 4)),
    "det 5": (_determinants, (5, 5)),
    "pixels": (lambda x: ops.conv(x[:, :5], x[:1, 5:6, :2, :2], strides=2), (3, 6, 5, 2)),
    "pixels same": (
        lambda x: ops.conv(x[:, :5], x[:1, 5:6, :2, :2], strides=(2, 3), padding="same"),
        (3, 6, 5, 2),
    ),
    "rows by a matrix": (lambda x: ops.matmul(x[:, :3], x[0, 3:7]), (2, 9, 4)),
    "rows by a turned matrix": (
        lambda x: tf.matmul(x[:, :3], x[0, 3:], transpose_b=True),
        (2, 9, 4),
    ),
    "turned rows by a matrix": (
        lambda x: tf.matmul(x[:, :3], x[0, 3:6], transpose_a=True),
        (2, 9, 4),
    ),
    "transposed pixels": (
        lambda x: ops.conv_transpose(x[:, :5], x[:1, 5:6, :2, :2], strides=2),
        (1, 6, 5, 2),
    ),
}


@pytest.mark.slow_cases("prod", "cumprod backwards", "cumprod")
@pytest.mark.parametrize("name", OPERATIONS)
def test_products_agree_with_differences_of_gradients(name, rng):
    function, shape = OPERATIONS[name]
    w, v = rng.normal(size=shape), rng.normal(size=(3, *shape))
    scalar = second.scalar(function, w)
    expected = np.array(
        [second.differences(lambda w: second.gradient(scalar, w), w, one) for one in v]
    )
    for way in second.WAYS.values():
        assert truth.relative_error(second.products(scalar, w, v, way), expected) < 1e-7


def test_a_vector_like_a_matrix_is_not_copied_to_each_example():
    """Of sequences times a matrix, nothing but the value itself is made example by example."""
    x = np.ones((5, 3, 4))

    @tf.function(autograph=False)
    def product(w, v):
        with primitives.replaced():
            with tf.GradientTape() as outer:
                outer.watch(w)
                slope = second.gradient(lambda w: tf.reduce_sum(tf.matmul(x, w) ** 3), w)
            return outer.gradient(slope, w, output_gradients=v)

    w = tf.ones((4, 2), tf.float64)
    kinds = [op.type for op in product.get_concrete_function(w, w).graph.get_operations()]
    assert kinds.count("BatchMatMulV2") == 1 and kinds.count("MatMul") >= 3


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize("name", [n for n in OPERATIONS if "prod" in n])
def test_products_of_factors_that_are_zero(name, zeros, rng):
    """Differences of differences of values: TensorFlow's gradient of `cumprod` is wrong here."""
    function, shape = OPERATIONS[name]
    w = rng.normal(size=shape)
    w.ravel()[rng.permutation(w.size)[:zeros]] = 0
    v = rng.normal(size=shape)
    scalar = second.scalar(function, w)

    def value(w):
        return scalar(tf.constant(w)).numpy()

    def slope(w):
        return np.array([_central(value, w, e.reshape(shape)) for e in np.eye(w.size)])

    expected = _central(slope, w, v).reshape(shape)
    np.testing.assert_allclose(
        second.products(scalar, w, v[None])[0], expected, rtol=1e-6, atol=1e-7
    )


def _central(function, w, v, step=1e-3):
    return (
        8 * (function(w + step * v) - function(w - step * v))
        - (function(w + 2 * step * v) - function(w - 2 * step * v))
    ) / (12 * step)


def test_products_along_an_axis_of_unknown_length(rng):
    w, v = rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    w[1:3, 0] = 0

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)] * 2, autograph=False)
    def product(w, v):
        with primitives.replaced():
            with tf.GradientTape() as outer:
                outer.watch(w)
                slope = second.gradient(lambda w: tf.reduce_sum(tf.reduce_prod(w, 0) ** 2 / 2), w)
            return outer.gradient(slope, w, output_gradients=v)

    def hessian(x):
        """Of (Π x)² / 2."""
        others = [[np.prod(np.delete(x, [i, j])) for j in range(5)] for i in range(5)]
        gradient = np.array([np.prod(np.delete(x, i)) for i in range(5)])
        return np.outer(gradient, gradient) + np.prod(x) * (np.array(others) * (1 - np.eye(5)))

    expected = np.stack([hessian(w[:, c]) @ v[:, c] for c in range(2)], 1)
    np.testing.assert_allclose(product(w, v), expected, rtol=1e-10, atol=1e-12)


def test_determinant_of_a_singular_matrix():
    a = np.array([[1.0, 2.0], [0.5, 1.0]])
    v = np.array([[0.3, -1.0], [2.0, 0.7]])
    found = second.products(tf.linalg.det, a, v[None])[0]
    np.testing.assert_allclose(found, [[v[1, 1], -v[1, 0]], [-v[0, 1], v[0, 0]]], atol=1e-14)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("layer", ["Conv2D", "Conv1D", "Conv2DTranspose"])
def test_no_gradient_of_a_strided_pixel_is_asked_of_tensorflow(layer, batch, rng):
    """That one corrupts memory in batches of one and three, on some processors."""
    keras.config.set_dtype_policy("float32")
    layer = getattr(layers, layer)(8, 1, strides=2, padding="same")
    model = keras.Sequential([keras.Input((13,) * layer.rank + (4,)), layer])
    x = tf.constant(rng.normal(size=(batch, *model.input_shape[1:])), tf.float32)
    kernel = layer.kernel.value

    @tf.function(autograph=False)
    def slopes(x):
        with primitives.replaced():
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                y = model(x)
            return y, tape.gradient(y, [x, kernel], output_gradients=tf.cos(y))

    for op in slopes.get_concrete_function(x).graph.get_operations():
        if op.type == "Conv2DBackpropFilter":
            assert set(op.get_attr("strides")) == {1}
    y, (over_x, over_kernel) = tf.nest.map_structure(np.array, slopes(x))
    cut = (slice(None), *[slice(None, None, 2)] * layer.rank)
    x, matrix, found = x.numpy(), kernel.numpy().squeeze(), over_kernel.squeeze()
    if isinstance(layer, layers.Conv2DTranspose):
        expected = np.cos(y)[cut].reshape(-1, 8).T @ x.reshape(-1, 4)
        spread = np.cos(y)[cut] @ matrix
    else:
        expected = x[cut].reshape(-1, 4).T @ np.cos(y).reshape(-1, 8)
        spread = np.zeros_like(x)
        spread[cut] = np.cos(y) @ matrix.T
    assert truth.relative_error(found, expected) < 1e-5
    assert truth.relative_error(over_x, spread) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
def test_example_gradients_of_a_strided_pixel(batch, rng):
    model = keras.Sequential(
        [
            keras.Input((7, 6, 2)),
            layers.Conv2D(3, 1, strides=2, activation="tanh"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(batch, 7, 6, 2)), rng.normal(size=(batch, 1))
    v = rng.normal(size=len(truth.get_flat(model)))
    assert (
        truth.relative_error(ki.hvp(model, v, (x, y)), truth.finite_difference_hvp(model, x, y, v))
        < 1e-7
    )


# ---- products in vectorised maps

# name: (a product for each of what is mapped over, shapes of what is mapped over and of the other operand)
_MAPPED = {
    "examples, one matrix": (lambda a, w: tf.matmul(a[None], w), (None, 9, 4), (4, 6)),
    "examples, one matrix of three axes": (lambda a, w: tf.matmul(a[None], w), (None, 9, 4), (1, 4, 6)),
    "vectors, one matrix": (lambda a, w: tf.matmul(a, w), (70, None, 9, 4), (4, 6)),
    "vectors, a matrix of each example": (lambda a, w: tf.matmul(a, w), (70, None, 9, 4), (None, 4, 6)),
    "vectors, turned": (
        lambda a, w: tf.matmul(a, w, transpose_a=True, transpose_b=True),
        (70, None, 4, 9),
        (None, 6, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _MAPPED)
def test_maps_make_no_product_in_which_tensorflow_corrupts_memory(name, rng):
    """Of four axes with an axis of one, or one that may be one, beside one matrix; it need not show each time."""
    product, mapped, other = _MAPPED[name]
    with primitives.replaced():
        traced = tf.function(
            lambda a, w: tf.vectorized_map(lambda row: product(row, w), a),
            [tf.TensorSpec(mapped), tf.TensorSpec(other)],
        ).get_concrete_function()
    found = [op.inputs for op in traced.graph.get_operations() if op.type == "BatchMatMulV2"]
    assert found and all(a.shape.rank != 4 for a, _ in found)
    a, w = (
        rng.normal(size=[3 if size is None else size for size in shape]).astype("f")
        for shape in (mapped, other)
    )
    turned = "turned" in name
    expected = (a.swapaxes(-1, -2) if turned else a) @ (w.swapaxes(-1, -2) if turned else w)
    values = traced(tf.constant(a), tf.constant(w)).numpy()
    assert truth.relative_error(values.reshape(expected.shape), expected) < 1e-5


def test_maps_leave_other_products_as_they_are(rng):
    """A matrix of each on both sides, and more axes of examples than one."""
    a, b = (tf.constant(rng.normal(size=shape)) for shape in ((5, 3, 9, 4), (5, 3, 4, 6)))
    with primitives.replaced():
        traced = tf.function(lambda a, b: tf.vectorized_map(lambda pair: pair[0] @ pair[1], [a, b]))
        graph = traced.get_concrete_function(a, b).graph
    assert "ExpandDims" not in {op.type for op in graph.get_operations()}
    assert truth.relative_error(traced(a, b), a.numpy() @ b.numpy()) < 1e-12
