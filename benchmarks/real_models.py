"""How soon a first answer comes, and in how much memory, on the kinds of models that users have.

The unit is an epoch of `fit` on the same data in the same process. With all defaults the first
call should take at most five first epochs (both with their tracing) and twenty later ones, a
second call with other test examples twenty later ones; beyond model and data it should take at
most a gigabyte and three times the weights' bytes for each test example.

    python benchmarks/real_models.py [--models mobilenet bilstm ...] [--method auto] [--test 4]

Every model runs in a process of its own. Weights are not trained beyond two epochs, data are
random: it is about time and memory alone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from problems import environment

import keras_influence as ki

layers = keras.layers


def _images(n, size, classes=10):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, size, size, 3)).astype(np.float32)
    return x, rng.integers(0, classes, n)


def _sequences(n, *shape, classes=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, classes, n)


def _tokens(n, length, vocabulary, classes=2):
    rng = np.random.default_rng(0)
    return rng.integers(0, vocabulary, (n, length)), rng.integers(0, classes, n)


def mobilenet():
    model = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), classes=10)
    return model, _images(300, 64)


def resnet50():
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    return model, _images(256, 32)


def efficientnet():
    base = keras.applications.EfficientNetV2B0(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )
    return keras.Sequential([base, layers.Dense(10, activation="softmax")]), _images(256, 32)


def _encoder(x, width, heads, blocks):
    for _ in range(blocks):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(heads, width // heads)(h, h)
        h = layers.LayerNormalization()(x)
        x = x + layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(h))
    return layers.LayerNormalization()(x)


def vit():
    inputs = keras.Input((32, 32, 3))
    x = layers.Reshape((64, 64))(layers.Conv2D(64, 4, 4)(inputs))
    x = x + layers.Embedding(64, 64)(keras.ops.arange(64))
    x = layers.GlobalAveragePooling1D()(_encoder(x, 64, 4, 4))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    return model, _images(500, 32)


def bert():
    inputs = keras.Input((32,), dtype="int32")
    x = layers.Embedding(1000, 64)(inputs) + layers.Embedding(32, 64)(keras.ops.arange(32))
    x = layers.GlobalAveragePooling1D()(_encoder(x, 64, 4, 2))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return model, _tokens(500, 32, 1000)


@keras.saving.register_keras_serializable("real_models")
class Tokens(layers.Layer):
    """A token for the class in front, and a table of positions: a user's own weights."""

    def build(self, shape):
        self.first = self.add_weight(shape=(1, 1, shape[-1]))
        self.table = self.add_weight(shape=(1, shape[1] + 1, shape[-1]))

    def call(self, x):
        first = keras.ops.broadcast_to(self.first, (keras.ops.shape(x)[0], 1, x.shape[-1]))
        return keras.ops.concatenate([first, x], axis=1) + self.table


def tokens():
    inputs = keras.Input((32,), dtype="int32")
    x = _encoder(Tokens()(layers.Embedding(1000, 64)(inputs)), 64, 4, 2)[:, 0]
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return model, _tokens(500, 32, 1000)


def bilstm():
    inputs = keras.Input((20,), dtype="int32")
    x = layers.Bidirectional(layers.LSTM(16))(layers.Embedding(50, 8)(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return model, _tokens(200, 20, 50)


def convlstm():
    inputs = keras.Input((6, 12, 12, 1))
    x = layers.GlobalAveragePooling2D()(layers.ConvLSTM2D(8, 3, padding="same")(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return model, _sequences(100, 6, 12, 12, 1)


def wide():
    """Two million weights, 32 examples."""
    body = [layers.Dense(1000, "relu"), layers.Dense(1000, "softmax")]
    model = keras.Sequential([keras.Input((1000,)), *body])
    return model, _sequences(32, 1000, classes=1000)


def classes():
    """A thousand classes at each of sixteen positions."""
    body = [layers.Dense(64, "relu"), layers.Dense(1000, "softmax")]
    model = keras.Sequential([keras.Input((16, 64)), *body])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 16, 64)).astype(np.float32)
    return model, (x, rng.integers(0, 1000, (256, 16)))


MODELS = {
    made.__name__: made
    for made in (
        *(mobilenet, resnet50, efficientnet, vit, bert, tokens),
        *(bilstm, convlstm, wide, classes),
    )
}


class Peak:
    """The largest memory of this process since it was made, in bytes beyond what it had."""

    def __init__(self):
        self._before = self._most = _resident()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            self._most = max(self._most, _resident())
            time.sleep(0.02)

    def read(self):
        return self._most - self._before


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _seconds(action):
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def measured(name, method, n_test):
    """One model's figures, as a dict."""
    keras.utils.set_random_seed(0)
    model, (x, y) = MODELS[name]()
    model.compile("adam", "sparse_categorical_crossentropy")
    epochs = [
        _seconds(lambda: model.fit(x, y, epochs=1, batch_size=32, verbose=0))[0] for _ in range(3)
    ]
    peak = Peak()
    calls = []
    for start in (0, n_test):
        test = x[start : start + n_test], y[start : start + n_test]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds, scores = _seconds(
                lambda test=test: ki.influence(model, test, (x, y), method=method, verbose=0)
            )
        calls.append(seconds)
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    first, later = epochs[0], min(epochs[1:])
    return {
        "model": name,
        "weights": weights,
        "first_epoch": first,
        "later_epoch": later,
        "first_call": calls[0],
        "first_allowed": 5 * first + 20 * later,
        "second_call": calls[1],
        "second_allowed": 20 * later,
        "peak": peak.read() / 1e9,
        "peak_allowed": 1 + 3 * 4 * weights * n_test / 1e9,
        "solver": scores.solver["class_name"],
        "residual": float(scores.residual.max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--method", default="auto")
    parser.add_argument("--test", type=int, default=4)
    parser.add_argument("--one", action="store_true", help="one model, as JSON, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.models[0], options.method, options.test)))
        return
    print(environment(), f"{options.test} test examples, method={options.method!r}\n", sep="\n")
    heads = ["model", "weights", "epoch: first, later, s", "first call, s (allowed)"]
    heads += ["second call, s (allowed)", "peak, GB (allowed)", "solver", "residual"]
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n", flush=True)
    for name in options.models:
        command = [sys.executable, __file__, "--one", "--models", name, "--method", options.method]
        run = subprocess.run(
            [*command, "--test", str(options.test)], capture_output=True, text=True
        )
        if run.returncode:
            print(f"| {name} | ended with {run.returncode}: {run.stderr.strip()[-200:]} |")
            continue
        r = json.loads(run.stdout.strip().splitlines()[-1])
        print(
            f"| {name} | {r['weights']:,} | {r['first_epoch']:.1f}, {r['later_epoch']:.2f} "
            f"| {r['first_call']:.1f} ({r['first_allowed']:.1f}) "
            f"| {r['second_call']:.1f} ({r['second_allowed']:.1f}) "
            f"| {r['peak']:.2f} ({r['peak_allowed']:.2f}) "
            f"| {r['solver']} | {r['residual']:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
