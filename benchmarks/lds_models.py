"""The protocols of the LDS study: data, models and training, shared by its scripts.

`mlp` and `conv` are our own. The others are published ones, on Fashion-MNIST in place of MNIST:

- `astra`: Wang et al. 2025 (arXiv 2507.14740), after Bae et al. 2024: 6,144 examples, an MLP of
  512, 256 and 128 units, SGD at 0.03 with momentum 0.9 and weight decay 1e-3 in batches of 64
  for 20 epochs, the margin. PyTorch's weight decay adds 1e-3 times each weight to its gradient:
  the same as L2(5e-4) of every kernel and bias.
- `dattri_lr`, `dattri_mlp`: the benchmarks of dattri 0.3 (`dattri/benchmark/datasets/mnist`):
  5,000 and 500 examples with pixels of mean 0 and deviation 1, softmax regression by SGD at 0.01
  for 20 epochs; an MLP of 128 and 64 units with dropout of a tenth, momentum 0.9, 50 epochs;
  batches of 64, no regulariser, the test loss.

All train on shuffled batches, and a ragged last one is dropped.
"""

import dataclasses
import weakref
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from problems import fashion_mnist

from keras_influence import TracIn

layers = keras.layers
# Of Fashion-MNIST's training pixels.
_MEAN, _DEVIATION = 0.2860, 0.3530


def margin(x, y, y_pred):
    """log(p / (1 - p)) of the right class: its logit less the log-sum-exp of the others."""
    right = tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), 10, dtype=y_pred.dtype)
    others = tf.where(right > 0, tf.constant(-1e9, y_pred.dtype), y_pred)
    return tf.reduce_sum(right * y_pred, 1) - tf.reduce_logsumexp(others, 1)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One study: how many examples of what, which model, how it is trained, what is explained.

    `decay`: the rate goes down to zero linearly over the epochs.
    """

    body: Callable
    n_train: int = 1000
    n_test: int = 200
    l2: float = 0.0
    biases: bool = False
    rate: float = 0.05
    momentum: float = 0.9
    decay: bool = False
    epochs: int = 30
    batch_size: int = 50
    subsets: int = 100
    seeds: int = 5
    normalised: bool = False
    target: Callable | None = margin

    def data(self):
        """`(x, y)` of train and test: the first images of each file; and what they are."""
        x, y, name = fashion_mnist(self.n_train)
        x_test, y_test, _ = fashion_mnist(self.n_test, "test")
        if self.normalised:
            x, x_test = ((images - _MEAN) / _DEVIATION for images in (x, x_test))
        return (x, y), (x_test, y_test), name

    def build(self):
        """An untrained model that returns logits."""
        l2 = keras.regularizers.L2(self.l2) if self.l2 else None
        options = {"kernel_regularizer": l2, "bias_regularizer": l2 if self.biases else None}
        body = self.body(options | {"activation": "relu"})
        stack = [keras.Input((28, 28, 1)), *body, layers.Dense(10, **options)]
        return self._compiled(keras.Sequential(stack))

    def _compiled(self, model):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(self.rate, momentum=self.momentum), loss)
        return model

    def rates(self):
        """The rate of each epoch, as a function of its number."""
        return lambda epoch: self.rate * (1 - epoch / self.epochs if self.decay else 1)

    def time(self, n):
        """How far gradient descent goes in a training on n examples: its learning rates' sum."""
        rates = sum(self.rates()(epoch) for epoch in range(self.epochs))
        return rates * (n // self.batch_size) / (1 - self.momentum)

    def traced(self, model, train, every):
        """An untrained copy of `model`, trained by `model.fit` as `fit` does, and its `TracIn`."""
        copy, tracin = self._compiled(keras.models.clone_model(model)), TracIn(every=every)
        callbacks = [keras.callbacks.LearningRateScheduler(self.rates()), tracin]
        options = {"epochs": self.epochs, "batch_size": self.batch_size, "verbose": 0}
        copy.fit(*train, callbacks=callbacks, **options)
        return copy, tracin

    def fit(self, model, data):
        """SGD in one compiled loop: as `model.fit`, without a millisecond of its own a step."""
        x, y, size = data["x"], data["y"], self.batch_size
        steps = len(x) // size
        orders = [np.random.permutation(len(x))[: steps * size] for _ in range(self.epochs)]
        rates = np.repeat([self.rates()(epoch) for epoch in range(self.epochs)], steps)
        if model not in _loops:
            _loops[model] = _loop(model, size, self.momentum)
        order = np.stack(orders).reshape(-1, size).astype(np.int32)
        _loops[model](tf.constant(x), tf.constant(y), order, rates.astype(np.float32))


_loops = weakref.WeakKeyDictionary()


def _loop(model, batch_size, momentum):
    velocity = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.trainable_variables]
    variables = [v.value for v in model.trainable_variables]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 28, 28, 1]),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, batch_size], tf.int32),
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
                v.assign(momentum * v - rates[step] * g)
                w.assign_add(v)

    return loop


def _dense(*units, dropout=None):
    def body(options):
        stack = [layers.Flatten()]
        for size in units:
            stack.append(layers.Dense(size, **options))
            stack += [] if dropout is None else [layers.Dropout(dropout)]
        return stack

    return body


def _convolutions(options):
    strided = {"strides": 2, "padding": "same", **options}
    return [layers.Conv2D(8, 3, **strided), layers.Conv2D(16, 3, **strided), layers.Flatten()]


_OURS = {"l2": 1e-3, "decay": True, "seeds": 3}
_DATTRI = {
    "n_train": 5000,
    "n_test": 500,
    "rate": 0.01,
    "batch_size": 64,
    "normalised": True,
    "target": None,
}
PROTOCOLS = {
    "mlp": Protocol(_dense(64), **_OURS),
    "conv": Protocol(_convolutions, subsets=60, **_OURS),
    "astra": Protocol(
        _dense(512, 256, 128),
        n_train=6144,
        l2=5e-4,
        biases=True,
        rate=0.03,
        epochs=20,
        batch_size=64,
    ),
    "dattri_lr": Protocol(_dense(), momentum=0.0, epochs=20, **_DATTRI),
    "dattri_mlp": Protocol(_dense(128, 64, dropout=0.1), epochs=50, **_DATTRI),
}
