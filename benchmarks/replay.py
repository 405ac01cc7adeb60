"""How well `Replay` predicts what training does without examples, and what it costs.

Data: the first 1,000 training and 50 test images of Fashion-MNIST (or, with --digits, 1,000
and 50 of scikit-learn's digits). Models: an MLP with 128 gelu units; for the run "conv" a
net of 16 and 32 filters 3 x 3, stride 2, gelu. Cross-entropy. Each run is
trained once by `model.fit`, and its scores are of the margin log(p / (1 - p)) of the right
class. Truth: `model.fit` again from the same start, in the same order, for each of 60 random
subsets, with sample weight 0 for what is left out. Printed is the linear datamodelling score
(Spearman correlation over the subsets, mean over the test images, with a 95 % bootstrap
interval), the slope of actual on predicted changes, and what scores cost in trainings: seconds
of the processor against those of `fit` without a callback, both once they have run before.

A small model's `fit` is mostly Keras's own work between steps, so that its trainings are cheap
beside which to count; the conv net's are mostly arithmetic.

    python benchmarks/replay.py [--digits] [--runs adam sgd fast conv] [--subsets 60]

Without a quiet machine: --subsets 0 prints the costs alone.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from lds_models import margin
from problems import environment, fashion_mnist

from keras_influence import Replay
from keras_influence.evaluation import SubsetOutputs, lds

N, TESTS = 1000, 50
FRACTIONS = (0.01, 0.05, 0.1, 0.5)
layers = keras.layers
MLP = (layers.Flatten, lambda: layers.Dense(128, "gelu"))
CONV = (
    lambda: layers.Conv2D(16, 3, strides=2, padding="same", activation="gelu"),
    lambda: layers.Conv2D(32, 3, strides=2, padding="same", activation="gelu"),
    layers.Flatten,
)
# Layers, optimizer, epochs and batch size.
RUNS = {
    "adam": (MLP, lambda: keras.optimizers.Adam(1e-3), 40, 500),
    "sgd": (MLP, lambda: keras.optimizers.SGD(1e-2, momentum=0.9), 20, 250),
    "fast": (MLP, lambda: keras.optimizers.SGD(5e-2, momentum=0.9), 20, 250),
    "conv": (CONV, lambda: keras.optimizers.SGD(1e-2, momentum=0.9), 20, 250),
}


class Training:
    """One of the runs, done again and again from the same start."""

    def __init__(self, name, train):
        body, optimizer, self.epochs, self.batch_size = RUNS[name]
        self.train = train
        keras.utils.set_random_seed(0)
        stack = [keras.Input(train[0].shape[1:]), *(layer() for layer in body), layers.Dense(10)]
        self.model = keras.Sequential(stack)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer(), loss)
        self.model.optimizer.build(self.model.trainable_variables)
        self._variables = [*self.model.variables, *self.model.optimizer.variables]
        self._start = [v.numpy() for v in self._variables]

    def fit(self, weights=None):
        """Train as `Replay` does, with these sample weights; the callback."""
        self._restart()
        weights = np.ones(N, np.float32) if weights is None else weights.astype(np.float32)
        replay = Replay(*self.train, batch_size=self.batch_size, sample_weight=weights)
        self.model.fit(replay.data, epochs=self.epochs, verbose=0, callbacks=[replay])
        return replay

    def plain(self):
        """Train on the arrays, as without this package."""
        self._restart()
        options = {"epochs": self.epochs, "batch_size": self.batch_size, "verbose": 0}
        self.model.fit(*self.train, sample_weight=np.ones(N, np.float32), **options)

    def _restart(self):
        for variable, value in zip(self._variables, self._start):
            variable.assign(value)


def main(digits, names, subsets):
    train, test, source = data(digits)
    print(f"{source}, n = {N}, {TESTS} test images, {subsets} subsets. {environment()}\n")
    table = [header("run", *(f"{fraction:.0%} left out" for fraction in FRACTIONS))]
    costs = [header("run", "steps", "one target", f"each of {TESTS}", "recording", "rounding")]
    for name in names:
        training = Training(name, train)
        costs.append(row(name, *cost(training, test)))
        if subsets:
            table.append(row(name, *quality(training, test, subsets)))
    if subsets:
        print("LDS (95 % interval), slope of actual on predicted changes\n")
        print("\n".join(table) + "\n")
    print("Cost in trainings by `fit`\n")
    print("\n".join(costs), flush=True)


def quality(training, test, subsets):
    """LDS and slope for each fraction."""
    scores = training.fit().influence(test, margin, verbose=0)
    full = outputs(training.model, test)
    rng, cells = np.random.default_rng(0), []
    for fraction in FRACTIONS:
        gone = [rng.choice(N, round(fraction * N), replace=False) for _ in range(subsets)]
        masks = np.ones((subsets, N), bool)
        for mask, group in zip(masks, gone):
            mask[group] = False
        actual = []
        for mask in masks:
            training.fit(mask)
            actual.append(outputs(training.model, test))
        score = lds(scores.values, SubsetOutputs(np.array(actual)[:, None], masks, (0,), "margin"))
        predicted = (~masks) @ scores.values.T
        slope = np.polyfit(predicted.ravel(), (np.array(actual) - full).ravel(), 1)[0]
        low, high = score.interval
        cells.append(f"{score.mean:.3f} ({low:.3f} to {high:.3f}), {slope:.2f}")
    return cells


def cost(training, test):
    """Steps, trainings for one target and for each of many, and what recording adds to `fit`."""
    training.plain()
    whole = seconds(training.plain)
    training.fit()
    replay = training.fit()
    one = tuple(part[:1] for part in test)
    for asked in (one, test):
        replay.influence(asked, margin, verbose=0)
    alone = seconds(lambda: replay.influence(one, margin, verbose=0))
    many = seconds(lambda: replay.influence(test, margin, verbose=0)) / TESTS
    details = replay.influence(one, margin, verbose=0).details
    recording = seconds(training.fit) / whole - 1
    shown = (f"{alone / whole:.1f}", f"{many / whole:.2f}", f"{recording:+.0%}")
    return (details["steps"], *shown, f"{details['rounding']:.1e}")


def seconds(action):
    """Seconds of the processor."""
    start = time.process_time()
    action()
    return time.process_time() - start


def outputs(model, test):
    """The margin of each test image."""
    return margin(*test, model.predict(test[0], verbose=0, batch_size=TESTS)).numpy()


def data(digits):
    """Train, test, and what they are."""
    if digits:
        from sklearn.datasets import load_digits

        found = load_digits()
        x, y = (found.images / 16).astype(np.float32)[..., None], found.target
        return (x[:N], y[:N]), (x[N : N + TESTS], y[N : N + TESTS]), "scikit-learn's digits"
    x, y, name = fashion_mnist(N)
    return (x, y), fashion_mnist(TESTS, "test")[:2], name


def header(*cells):
    """The first two lines of a table."""
    return row(*cells) + "\n" + row(*("---" for _ in cells))


def row(*cells):
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--subsets", type=int, default=60)
    o = parser.parse_args()
    main(o.digits, o.runs, o.subsets)
