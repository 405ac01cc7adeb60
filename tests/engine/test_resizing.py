"""Resizing: linear, so that R'(b ∘ R v), by TensorFlow's own R and R', is exact.

TensorFlow has most of it in float32 only: too coarse for differences.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels import primitives
from tests import truth
from tests.engine import second

layers = keras.layers


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
        return second.gradient(lambda x: tf.reduce_sum(u * function(x)), tf.constant(w))

    expected = [transposed(b * function(tf.constant(one))) for one in v]
    for way in second.WAYS.values():
        found = second.products(lambda x: tf.reduce_sum(b * tf.square(function(x)) / 2), w, v, way)
        assert truth.relative_error(found, expected) < 2e-6
    outside = transposed(b)
    with primitives.replaced():
        assert truth.relative_error(transposed(b), outside) < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("method", ["bilinear", "nearest", "bicubic", "lanczos3"])
def test_resizing_of_images_of_other_precisions(method, dtype, rng):
    x = tf.constant(rng.normal(size=(2, 6, 5, 2)), dtype)
    with primitives.replaced():
        found = second.gradient(lambda x: tf.reduce_sum(_resized(method=method)(x)), x)
    wide = tf.cast(x, tf.float32)
    expected = second.gradient(lambda x: tf.reduce_sum(_resized(method=method)(x)), wide)
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == "float16" else 2e-6)


def test_boxes_that_depend_on_weights_are_refused(rng):
    image = rng.normal(size=(1, 6, 5, 2)).astype("float32")
    boxes = np.array([[0.1, 0.2, 0.8, 0.9]], "float32")

    def cropped(boxes):
        return tf.reduce_sum(tf.square(tf.image.crop_and_resize(image, boxes, [0], (4, 3))))

    with pytest.raises(LookupError, match="CropAndResizeGradBoxes"):
        second.products(cropped, boxes, boxes[None])


@pytest.mark.parametrize("radius", [1, 5])  # 5 is the default, and reaches beyond all channels.
def test_local_response_normalisation(radius, rng):
    def normalised(x):
        return tf.nn.local_response_normalization(x, radius, bias=0.8, alpha=0.7, beta=0.6)

    def closed(x):
        padded = tf.square(tf.pad(x, [[0, 0]] * 3 + [[radius, radius]]))
        near = sum(padded[..., i : i + 4] for i in range(2 * radius + 1))
        return x / (0.8 + 0.7 * near) ** 0.6

    w, v = (rng.normal(size=(2, 3, 3, 4)) for _ in range(2))
    scalar = second.scalar(closed, w)
    expected = second.differences(lambda w: second.gradient(scalar, w), w, v)
    w, v = w.astype("float32"), v.astype("float32")
    assert (
        truth.relative_error(second.products(second.scalar(normalised, w), w, v[None])[0], expected)
        < 1e-5
    )


@pytest.mark.parametrize("layer", ["UpSampling2D", "Resizing"])
def test_gauss_newton_products_of_models_that_resize(layer, rng):
    resize = {
        "UpSampling2D": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
        "Resizing": lambda: layers.Resizing(9, 9),
    }[layer]()
    stack = [layers.Conv2D(2, 3, activation="tanh"), resize, layers.Activation("tanh")]
    model = keras.Sequential([keras.Input((6, 6, 1)), *stack, layers.Flatten(), layers.Dense(2)])
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(8, 6, 6, 1)), rng.normal(size=(8, 2))
    with tf.GradientTape() as tape:
        z = model(x, training=False)
    jacobians = tape.jacobian(z, [v.value for v in model.trainable_variables])
    j = np.concatenate([np.asarray(part).reshape(16, -1) for part in jacobians], 1)
    found = ki.hvp(model, np.eye(j.shape[1]), (x, y), curvature="gauss_newton", batch_size=5)
    assert truth.relative_error(found, 2 * j.T @ j / 16) < 1e-6
