"""What it saves to join the small batches of a dataset.

    python benchmarks/batches.py

Seconds of a later `influence` call on a dataset in batches of 32 (the recurrent net: of 8), with
its batches as they are and joined, in turn, medians of three; 4 test examples, random data, a net that is hardly
trained. All of them are held in memory.
"""

import itertools
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from problems import environment
from timing import alternate

import keras_influence as ki
from keras_influence.engine.data.held import Batches, HeldBatches

layers = keras.layers


def _net(shape, *body):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), *body, layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def _dense(n):
    return _net((784,), layers.Dense(64, "relu")), n, 32


def _conv(n):
    body = [layers.Conv2D(8, 3, 2, activation="relu"), layers.Conv2D(16, 3, 2, activation="relu")]
    return _net((28, 28, 1), *body, layers.GlobalAveragePooling2D()), n, 32


def _recurrent(n):
    return _net((20, 8), layers.Bidirectional(layers.GRU(16))), n, 8


CASES = {
    "784-64-10": lambda: _dense(5_000),
    "conv net": lambda: _conv(2_000),
    "bidirectional GRU": lambda: _recurrent(400),
}


def timed(make):
    """Numbers of examples and of their batches, and seconds with these as they are and joined."""
    model, n, size = make()
    rng = np.random.default_rng(0)
    data = rng.normal(size=(n, *model.input_shape[1:])).astype("float32"), rng.integers(0, 10, n)
    train = tf.data.Dataset.from_tensor_slices(data).batch(size)
    model.fit(train, epochs=1, verbose=0)
    test, calls = tuple(array[:4] for array in data), itertools.count()

    def ask():
        # Another damping each time, as a system that was solved before is kept.
        damping = 0.01 * (1 + 1e-5 * next(calls))
        return ki.influence(model, test, train, damping=damping, verbose=0).values

    joined = {kind: kind.joined for kind in (Batches, HeldBatches)}

    def as_they_are():
        for kind in joined:
            kind.joined = lambda self, *about: self
        try:
            return ask()
        finally:
            for kind, method in joined.items():
                kind.joined = method

    apart, together = as_they_are(), ask()
    if np.linalg.norm(apart - together) > 1e-3 * np.linalg.norm(together):
        raise AssertionError("The scores differ.")
    ways = {"as they are": as_they_are, "joined": ask}
    seconds = alternate(ways, repeats=3, limit=np.inf)[0]
    return n, -(-n // size), seconds["as they are"], seconds["joined"]


def main():
    warnings.simplefilter("ignore")
    print(environment(), "", sep="\n")
    heads = ["model", "examples", "batches", "as they are, s", "joined, s", "times"]
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name, make in CASES.items():
        n, batches, slow, fast = timed(make)
        figures = f"{n:,}", batches, f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}"
        print(f"| {name} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
