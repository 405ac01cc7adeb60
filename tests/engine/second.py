"""Second derivatives as kernels take them, and as differences of TensorFlow's own gradients."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels import primitives


def gradient(function, w):
    with tf.GradientTape() as tape:
        tape.watch(w)
        value = function(w)
    return tf.convert_to_tensor(tape.gradient(value, w))


def scalar(function, like):
    """A scalar that is curved even where `function` is linear."""
    rng = np.random.default_rng(1)
    out = function(tf.constant(like))
    a, b = (tf.constant(rng.normal(size=out.shape), out.dtype) for _ in range(2))
    return lambda w: tf.reduce_sum(a * function(w) + b * tf.square(function(w)) / 2)


def _one(product, vectors):
    return tf.stack([product(v) for v in tf.unstack(vectors)])


# How kernels go through several vectors.
WAYS = {"one by one": _one, "map_fn": tf.map_fn, "vectorized_map": tf.vectorized_map}


def products(scalar, w, vectors, way=_one):
    """∂²scalar v for each v, reverse over reverse and compiled, as kernels do it."""

    @tf.function(autograph=False)
    def compiled(w, vectors):
        with primitives.replaced():
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(w)
                slope = gradient(scalar, w)

            def product(v):
                return outer.gradient(slope, w, output_gradients=v)

            return way(product, vectors)

    return compiled(tf.constant(w), tf.constant(vectors)).numpy()


def differences(gradient, w, v, step=1e-4):
    def at(t):
        return gradient(tf.constant(w + t * step * v)).numpy()

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
