"""Derivatives of TensorFlow's operations as kernels take them.

Truth: central differences of TensorFlow's own gradients, in float64, taken outside; for linear
operations of which TensorFlow has only a float32 version, its own first derivative, twice.
"""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels import primitives
from tests import truth

ops, layers = keras.ops, keras.layers


def _gradient(function, w):
    with tf.GradientTape() as tape:
        tape.watch(w)
        value = function(w)
    return tf.convert_to_tensor(tape.gradient(value, w))


def _scalar(function, like):
    """A scalar that is curved even where `function` is linear."""
    rng = np.random.default_rng(1)
    out = function(tf.constant(like))
    a, b = (tf.constant(rng.normal(size=out.shape), out.dtype) for _ in range(2))
    return lambda w: tf.reduce_sum(a * function(w) + b * tf.square(function(w)) / 2)


def _one(product, vectors):
    return tf.stack([product(v) for v in tf.unstack(vectors)])


_WAYS = {"one by one": _one, "map_fn": tf.map_fn, "vectorized_map": tf.vectorized_map}


def _products(scalar, w, vectors, way=_one):
    """∂²scalar v for each v, reverse over reverse and compiled, as kernels do it."""

    @tf.function(autograph=False)
    def compiled(w, vectors):
        with primitives.replaced():
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(w)
                slope = _gradient(scalar, w)

            def product(v):
                return outer.gradient(slope, w, output_gradients=v)

            return way(product, vectors)

    return compiled(tf.constant(w), tf.constant(vectors)).numpy()


def _differences(gradient, w, v, step=1e-4):
    def at(t):
        return gradient(tf.constant(w + t * step * v)).numpy()

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


# ---- operations in float64

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
    "moments": (lambda x: ops.stack(ops.moments(x, [1])), (3, 4)),
    "euclidean_norm": (lambda x: tf.math.reduce_euclidean_norm(x, 1), (3, 4)),
    "labels of weights": (
        lambda x: ops.categorical_crossentropy(ops.softmax(x[:3]), x[3:], from_logits=True),
        (6, 4),
    ),
    "logits": (lambda x: ops.categorical_crossentropy(_LABELS, x, from_logits=True), (3, 4)),
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
    "transposed pixels": (
        lambda x: ops.conv_transpose(x[:, :5], x[:1, 5:6, :2, :2], strides=2),
        (1, 6, 5, 2),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_products_agree_with_differences_of_gradients(name, rng):
    function, shape = OPERATIONS[name]
    w, v = rng.normal(size=shape), rng.normal(size=(3, *shape))
    scalar = _scalar(function, w)
    expected = np.array([_differences(lambda w: _gradient(scalar, w), w, one) for one in v])
    for way in _WAYS.values():
        assert truth.relative_error(_products(scalar, w, v, way), expected) < 1e-7


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize("name", [n for n in OPERATIONS if "prod" in n])
def test_products_of_factors_that_are_zero(name, zeros, rng):
    """Differences of differences of values: TensorFlow's gradient of `cumprod` is wrong here."""
    function, shape = OPERATIONS[name]
    w = rng.normal(size=shape)
    w.ravel()[rng.permutation(w.size)[:zeros]] = 0
    v = rng.normal(size=shape)
    scalar = _scalar(function, w)

    def value(w):
        return scalar(tf.constant(w)).numpy()

    def slope(w):
        return np.array([_central(value, w, e.reshape(shape)) for e in np.eye(w.size)])

    expected = _central(slope, w, v).reshape(shape)
    np.testing.assert_allclose(_products(scalar, w, v[None])[0], expected, rtol=1e-6, atol=1e-7)


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
                slope = _gradient(lambda w: tf.reduce_sum(tf.reduce_prod(w, 0) ** 2 / 2), w)
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
    found = _products(tf.linalg.det, a, v[None])[0]
    np.testing.assert_allclose(found, [[v[1, 1], -v[1, 0]], [-v[0, 1], v[0, 0]]], atol=1e-14)


# ---- max pooling: which of several equals


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
        return _gradient(lambda x: tf.reduce_sum(u * function(x)), x)

    plain = pulled(tf.constant(x)).numpy()
    with primitives.replaced():
        np.testing.assert_allclose(pulled(tf.constant(x)), plain, rtol=1e-14)
    np.testing.assert_allclose(np.bincount(chosen, u.ravel(), x.size), plain.ravel(), rtol=1e-13)

    v = rng.normal(size=x.shape)
    curved = _products(lambda x: tf.reduce_sum(u * tf.sin(function(x))), x, v[None])[0]
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
    found = _products(lambda x: tf.reduce_sum(tf.square(function(x)) / 2), x, v[None])[0]
    along = function(x + 0.1 * v) - function(x)  # The choice stays; linear.
    expected = _gradient(lambda x: tf.reduce_sum(along * function(x)), tf.constant(x)) / 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_equal_voxels_share_nothing():
    x = np.zeros((1, 2, 2, 2, 1), "float32")
    with primitives.replaced():
        found = _gradient(lambda x: tf.reduce_sum(ops.max_pool(x, 2)), tf.constant(x))
    np.testing.assert_array_equal(found.numpy().ravel(), [1, 0, 0, 0, 0, 0, 0, 0])


def test_channels_first_is_the_same_choice(rng):
    """No kernel on CPU pools so: the gradient function is asked by itself."""
    x = tf.constant(rng.normal(size=(2, 7, 6, 3)))
    attributes = {
        "ksize": [1, 1, 3, 2],
        "strides": [1, 1, 2, 1],
        "padding": "EXPLICIT",
        "explicit_paddings": [0, 0, 0, 0, 1, 2, 1, 0],
        "data_format": b"NCHW",
    }
    op = type("Op", (), {"inputs": [tf.transpose(x, [0, 3, 1, 2])]})
    op.get_attr = attributes.get

    def pooled(x):
        return tf.nn.max_pool2d(x, [3, 2], [2, 1], [[0, 0], [1, 2], [1, 0], [0, 0]])

    u = tf.constant(rng.normal(size=pooled(x).shape))
    found = primitives.GRADIENTS["MaxPool"](None, op, tf.transpose(u, [0, 3, 1, 2]))
    expected = _gradient(lambda x: tf.reduce_sum(u * pooled(x)), x)
    np.testing.assert_allclose(tf.transpose(found, [0, 2, 3, 1]), expected, rtol=1e-14)


# ---- resizing, of which TensorFlow has only a float32 version: linear, so R'(b ∘ R v) is exact


def _resized(**options):
    return lambda x: tf.image.resize(x, (9, 4), **options)


RESIZES = {
    **{
        f"{method} {antialias}": _resized(method=method, antialias=antialias)
        for method in ("bilinear", "nearest", "bicubic", "lanczos3", "gaussian")
        for antialias in (False, True)
    },
    "v1 bilinear": lambda x: tf.compat.v1.image.resize_bilinear(x, (9, 4), align_corners=True),
    "v1 bicubic": lambda x: tf.compat.v1.image.resize_bicubic(x, (9, 4)),
    "v1 nearest": lambda x: tf.compat.v1.image.resize(x, (9, 4), method="nearest"),
    "Resizing": lambda x: layers.Resizing(9, 4, dtype="float32")(x),
    "Resizing cropped": lambda x: layers.Resizing(9, 4, crop_to_aspect_ratio=True, dtype="float32")(
        x
    ),
    "UpSampling2D": lambda x: layers.UpSampling2D(2, interpolation="bilinear", dtype="float32")(x),
    "crop_and_resize": lambda x: tf.image.crop_and_resize(
        x, [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 0.5]], [1, 0], (4, 3)
    ),
    "scale_and_translate": lambda x: tf.raw_ops.ScaleAndTranslate(
        images=x, size=[4, 3], scale=[0.7, 1.3], translation=[0.4, -1.1], kernel_type="lanczos5"
    ),
}


@pytest.mark.parametrize("name", RESIZES)
def test_resizing_is_linear(name, rng):
    function = RESIZES[name]
    w, v = (rng.normal(size=s).astype("float32") for s in ((2, 6, 5, 2), (3, 2, 6, 5, 2)))
    b = rng.normal(size=function(tf.constant(w)).shape).astype("float32")

    def transposed(u):
        return _gradient(lambda x: tf.reduce_sum(u * function(x)), tf.constant(w))

    expected = [transposed(b * function(tf.constant(one))) for one in v]
    for way in _WAYS.values():
        found = _products(lambda x: tf.reduce_sum(b * tf.square(function(x)) / 2), w, v, way)
        assert truth.relative_error(found, expected) < 2e-6
    with primitives.replaced():
        assert truth.relative_error(transposed(b), found_outside := transposed(b)) < 1e-6
    assert found_outside.dtype == tf.float32


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("method", ["bilinear", "nearest", "bicubic", "lanczos3"])
def test_resizing_of_images_of_other_precisions(method, dtype, rng):
    x = tf.constant(rng.normal(size=(2, 6, 5, 2)), dtype)
    with primitives.replaced():
        found = _gradient(lambda x: tf.reduce_sum(_resized(method=method)(x)), x)
    wide = tf.cast(x, tf.float32)
    expected = _gradient(lambda x: tf.reduce_sum(_resized(method=method)(x)), wide)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == "float16" else 2e-6)


def test_boxes_that_depend_on_weights_are_refused(rng):
    image = rng.normal(size=(1, 6, 5, 2)).astype("float32")
    boxes = np.array([[0.1, 0.2, 0.8, 0.9]], "float32")

    def cropped(boxes):
        return tf.reduce_sum(tf.square(tf.image.crop_and_resize(image, boxes, [0], (4, 3))))

    with pytest.raises(LookupError, match="CropAndResizeGradBoxes"):
        _products(cropped, boxes, boxes[None])


def test_local_response_normalisation(rng):
    def normalised(x):
        return tf.nn.local_response_normalization(x, 1, bias=0.8, alpha=0.7, beta=0.6)

    def closed(x):
        y = tf.square(tf.pad(x, [[0, 0]] * 3 + [[1, 1]]))
        return x / (0.8 + 0.7 * (y[..., :-2] + y[..., 1:-1] + y[..., 2:])) ** 0.6

    w, v = (rng.normal(size=(2, 3, 3, 4)) for _ in range(2))
    scalar = _scalar(closed, w)
    expected = _differences(lambda w: _gradient(scalar, w), w, v)
    w, v = w.astype("float32"), v.astype("float32")
    assert truth.relative_error(_products(_scalar(normalised, w), w, v[None])[0], expected) < 1e-5


# ---- convolutions of one pixel with strides


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


# ---- as layers of a model


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


# ---- names, threads, exceptions


def test_it_does_not_matter_under_which_name_an_operation_is_known(rng):
    w, v = rng.normal(size=(2, 5, 4, 2)), rng.normal(size=(2, 5, 4, 2))
    names = [
        lambda x: tf.nn.max_pool(x, 3, 1, "SAME"),
        lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"),
        lambda x: tf.compat.v1.nn.max_pool(x, [1, 3, 3, 1], [1, 1, 1, 1], "SAME"),
        lambda x: tf.raw_ops.MaxPool(
            input=x, ksize=[1, 3, 3, 1], strides=[1, 1, 1, 1], padding="SAME"
        ),
        tf.function(lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME")),
    ]
    scalars = [_scalar(name, w) for name in names]
    expected = _differences(lambda w: _gradient(scalars[0], w), w, v)
    for scalar in scalars:
        assert truth.relative_error(_products(scalar, w, v[None])[0], expected) < 1e-8


@pytest.mark.parametrize("moments", [tf.nn.moments, tf.compat.v1.nn.moments])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_moments_are_tensorflows_own_to_the_last_bit(moments, dtype, rng):
    x = tf.constant(rng.normal(size=(4, 6, 5)), dtype)
    before = [moments(x, [1, 2]), moments(x, [0, 2], keepdims=True)]
    with primitives.replaced():
        after = [tf.nn.moments(x, [1, 2]), tf.nn.moments(x, [0, 2], keepdims=True)]
        after += [moments(x, [1, 2])]
    for a, b in zip(after, [*before, before[0]]):
        for one, other in zip(a, b):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def _curvatures():
    """What TensorFlow makes of three second derivatives: none, zero, and a wrong one."""
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 1)).astype("float32")
    found = []
    for function, w in (
        (tf.nn.softsign, np.array([0.5, -2.0])),
        (lambda x: tf.image.resize(x, (5, 5)) ** 2, image),
        (lambda x: tf.nn.moments(x, [0])[1], np.array([0.5, -2.0])),
    ):
        w = tf.constant(w)
        try:
            with tf.GradientTape() as outer:
                outer.watch(w)
                slope = _gradient(lambda w, f=function: tf.reduce_sum(f(w)), w)
            second = outer.gradient(slope, w)
            found.append(None if second is None else second.numpy().tolist())
        except LookupError as error:
            found.append(str(error))
    return found


def test_other_threads_see_tensorflow_as_it_is():
    before, inside, finish, seen = _curvatures(), threading.Event(), threading.Event(), []

    def trace():
        with primitives.replaced():
            inside.set()
            finish.wait(60)
            seen.append(_curvatures())

    thread = threading.Thread(target=trace)
    thread.start()
    inside.wait(60)
    try:
        assert _curvatures() == before
    finally:
        finish.set()
        thread.join()
    assert seen[0][0] != before[0] and seen[0][1] != before[1] and seen[0][2] != before[2]
    assert _curvatures() == before


def test_threads_that_overlap_each_have_them_until_they_leave():
    before = _curvatures()
    with primitives.replaced():
        right = _curvatures()
    first_left, seen = threading.Event(), []

    def second():
        with primitives.replaced():
            entered.set()
            first_left.wait(60)
            seen.append(_curvatures())

    entered, thread = threading.Event(), threading.Thread(target=second)
    with primitives.replaced():
        thread.start()
        entered.wait(60)
    assert _curvatures() == before
    first_left.set()
    thread.join()
    assert seen == [right]
    assert _curvatures() == before


def _installed():
    from tensorflow.python.framework import ops as framework
    from tensorflow.python.ops import nn_impl

    table = framework._gradient_registry._registry
    return {k: id(table[k]) if k in table else None for k in primitives.GRADIENTS} | {
        "moments": (nn_impl.moments, tf.compat.v1.nn.moments, tf.nn.moments)
    }


def test_everything_is_as_before_after_nesting_and_exceptions():
    before = _installed()
    with primitives.replaced():
        right = _curvatures()
        with pytest.raises(ZeroDivisionError), primitives.replaced():
            raise ZeroDivisionError
        assert _curvatures() == right
    assert _installed() == before
    with pytest.raises(ZeroDivisionError), primitives.replaced():
        raise ZeroDivisionError
    assert _installed() == before


def test_what_others_put_in_place_meanwhile_stays(monkeypatch):
    from tensorflow.python.ops import nn_impl

    monkeypatch.setattr(nn_impl, "moments", nn_impl.moments)

    def theirs():
        pass

    with primitives.replaced():
        nn_impl.moments = theirs
    assert nn_impl.moments is theirs


def test_a_function_that_was_traced_before_is_right_too(rng):
    """Its first derivative is taken outside once, as `fit` does."""
    pooled = tf.function(lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"))
    w, v = rng.normal(size=(2, 5, 4, 2)), rng.normal(size=(2, 5, 4, 2))
    scalar = _scalar(pooled, w)
    expected = _differences(lambda w: _gradient(scalar, w), w, v)
    assert truth.relative_error(_products(scalar, w, v[None])[0], expected) < 1e-8
