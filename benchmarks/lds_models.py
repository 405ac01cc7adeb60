"""The models, data and training of the LDS study, shared by its scripts."""

import weakref

import keras
import numpy as np
import tensorflow as tf
from problems import fashion_mnist

from keras_influence import TracIn

layers = keras.layers

N_TRAIN, N_TEST = 1000, 200
BATCH_SIZE, RATE, MOMENTUM = 50, 0.05, 0.9
_L2 = 1e-3


def data():
    """`(x, y)` of train and test: the first images of each Fashion-MNIST file."""
    x, y, name = fashion_mnist(N_TRAIN)
    x_test, y_test, _ = fashion_mnist(N_TEST, "test")
    return (x, y), (x_test, y_test), name


def build(kind):
    """An untrained model that returns logits; L2(1e-3) on all kernels."""
    l2 = {"kernel_regularizer": keras.regularizers.L2(_L2)}
    relu = {"activation": "relu", **l2}
    body = {
        "mlp": [layers.Flatten(), layers.Dense(64, **relu)],
        "conv": [
            layers.Conv2D(8, 3, strides=2, padding="same", **relu),
            layers.Conv2D(16, 3, strides=2, padding="same", **relu),
            layers.Flatten(),
        ],
    }[kind]
    return _compiled(keras.Sequential([keras.Input((28, 28, 1)), *body, layers.Dense(10, **l2)]))


def _compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), loss)
    return model


def traced(model, train, epochs=30, every=3):
    """An untrained copy of `model`, trained by `model.fit` as `fit` does, and its `TracIn`."""
    copy, tracin = _compiled(keras.models.clone_model(model)), TracIn(every=every)
    rate = keras.callbacks.LearningRateScheduler(lambda epoch: RATE * (1 - epoch / epochs))
    copy.fit(*train, epochs=epochs, batch_size=BATCH_SIZE, callbacks=[rate, tracin], verbose=0)
    return copy, tracin


def margin(x, y, y_pred):
    """log(p / (1 - p)) of the right class: its logit less the log-sum-exp of the others."""
    right = tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), 10, dtype=y_pred.dtype)
    others = tf.where(right > 0, tf.constant(-1e9, y_pred.dtype), y_pred)
    return tf.reduce_sum(right * y_pred, 1) - tf.reduce_logsumexp(others, 1)


_loops = weakref.WeakKeyDictionary()


def fit(model, data, epochs=30):
    """SGD with momentum, the rate going down to zero linearly, in one compiled loop.

    The same as `model.fit` with a schedule, but without its overhead of a millisecond a step.
    Shuffled anew each epoch, a ragged last batch is dropped.
    """
    x, y = data["x"], data["y"]
    orders = [np.random.permutation(len(x)) for _ in range(epochs)]
    steps = len(x) // BATCH_SIZE
    order = np.stack([o[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE) for o in orders])
    rates = np.repeat(RATE * (1 - np.arange(epochs) / epochs), steps).astype(np.float32)
    if model not in _loops:
        _loops[model] = _loop(model)
    order = order.reshape(-1, BATCH_SIZE).astype(np.int32)
    _loops[model](tf.constant(x), tf.constant(y), order, rates)


def _loop(model):
    velocity = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.trainable_variables]
    variables = [v.value for v in model.trainable_variables]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 28, 28, 1]),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, BATCH_SIZE], tf.int32),
            tf.TensorSpec([None]),
        ]
    )
    def loop(x, y, order, rates):
        for v in velocity:
            v.assign(tf.zeros_like(v))
        for step in tf.range(tf.shape(order)[0]):
            rows = order[step]
            with tf.GradientTape() as tape:
                right = tf.gather(y, rows)
                y_pred = model(tf.gather(x, rows), training=True)
                loss = model.compute_loss(y=right, y_pred=y_pred)
            for v, w, g in zip(velocity, variables, tape.gradient(loss, variables)):
                v.assign(MOMENTUM * v - rates[step] * g)
                w.assign_add(v)

    return loop
