"""Does `method="auto"` take the fastest way to the accuracy that it promises?

For each case, a model, training examples and test examples, the whole call `influence` is timed as auto has it and
with every method that may be the fastest: the first call of a process, with its tracing, as most calls are; or, with
--later, later ones in turn, after one call of each, their preconditioners made anew. Ways that end with a residual
above that of an exact answer, 1e-5, do not count where auto promises one, and twice its own where it promises one that is
exact to rounding, by writing the matrix out. Where it takes EK-FAC, because an exact
answer is beyond its budget, the exact ways are shown beside it: it is right if none of them is as fast.
It is right if no way is faster by more than a tenth. Seconds are of processor time: what other processes
do on the machine lengthens them little.

    python benchmarks/auto.py [--cases "softmax 1" ...] [--repeats 3] [--limit 60] [--later]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from problems import MODELS, data, environment, fashion_mnist
from timing import alternate

import keras_influence as ki
from keras_influence import CG, EKFAC, Auto, Direct, Nystrom
from keras_influence.questions import kept

layers = keras.layers
DAMPING = 0.01
AUTO = "auto"
WAYS = {
    AUTO: Auto(),
    "Direct": Direct(),
    "CG": CG(),
    "CG, Nystrom(50)": CG(preconditioner=Nystrom(50)),
    "CG alone": CG(preconditioner=None),
    "EKFAC": EKFAC(),
}
EXACT = 1e-5


def _small(*hidden):
    """A classifier of images of 7 x 7 pixels."""
    body = [layers.Dense(width, "tanh") for width in hidden]
    stack = [keras.Input((28, 28, 1)), layers.AveragePooling2D(4), layers.Flatten(), *body]
    return keras.Sequential([*stack, layers.Dense(10, "softmax")])


def _lstm():
    stack = [keras.Input((28, 28, 1)), layers.Reshape((28, 28)), layers.LSTM(12)]
    return keras.Sequential([*stack, layers.Dense(10, "softmax")])


# (model, training examples, test examples)
CASES = {
    "tiny softmax 5": (_small, 2000, 5),
    "tiny net 100": (lambda: _small(16), 2000, 100),
    "small net 10": (lambda: _small(64), 2000, 10),
    "softmax 1": (MODELS["softmax"], 5000, 1),
    "softmax 100": (MODELS["softmax"], 5000, 100),
    "softmax 1000": (MODELS["softmax"], 2000, 1000),
    "mlp 1": (MODELS["mlp"], 5000, 1),
    "mlp 30": (MODELS["mlp"], 2000, 30),
    "conv 5": (MODELS["conv"], 500, 5),
    "transformer 2": (MODELS["transformer"], 300, 2),
    "transformer 30": (MODELS["transformer"], 300, 30),
    "LSTM 5": (_lstm, 300, 5),
    "ResNet-20 5": (MODELS["resnet20"], 128, 5),
}


def main(options):
    print(fashion_mnist(1)[2], environment(), "", sep="\n")
    names = " | ".join(f"{way}: s, passes" for way in WAYS)
    print(f"| case | p | n | {names} | it took | right |\n|{'---|' * (len(WAYS) + 5)}", flush=True)
    right = [show(name, options) for name in options.cases]
    print(f"\n{sum(right)} of {len(right)} right")


def ready(name):
    """A case's trained model, its training data and its test data."""
    make, n, count = CASES[name]
    kind = name.split()[0]
    train, test = data(kind, n), data(kind, count, "test")
    keras.utils.set_random_seed(0)
    model = make()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*train, epochs=3, batch_size=64, verbose=0)
    return model, train, test


def show(name, options):
    """Print the row of a case; whether auto's choice was right."""
    model, train, test = ready(name)
    n = len(train[0])
    if options.later:
        seconds, found = timed(model, train, test, options)
    else:
        seconds, found = timed_alone(name, options)
    cells = [cell(seconds[way], *found[way]) if way in seconds else "" for way in WAYS]
    chosen = found[AUTO][2]
    promised = {"EKFAC": float("inf"), "Direct": 2 * found[AUTO][0]}.get(chosen, EXACT)
    others = [s for way, s in seconds.items() if found[way][0] <= promised]
    fine = AUTO in seconds and seconds[AUTO] <= 1.1 * min(others)
    row = [name, model.count_params(), n, *cells, chosen, "yes" if fine else "no"]
    print(f"| {' | '.join(map(str, row))} |", flush=True)
    return fine


def timed_alone(name, options):
    """Of first calls by way, each in a process of its own: seconds; and what `about` has of it."""
    seconds, found = {}, {}
    for _ in range(options.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--cases", name, "--way", way]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode == 0:  # Beyond its size `Direct` refuses.
                took, *found[way] = json.loads(run.stdout.strip().splitlines()[-1])
                seconds.setdefault(way, []).append(took)
    return {way: statistics.median(s) for way, s in seconds.items()}, found


def first_call(name, way):
    """Print the processor seconds of a first call, and what `about` has of it."""
    model, train, test = ready(name)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ki.ConvergenceWarning)
        scores = ki.influence(model, test, train, method=WAYS[way], damping=DAMPING, verbose=0)
    seconds = time.process_time() - start
    print(json.dumps([seconds, *about(scores)]))


def timed(model, train, test, options):
    """By way: seconds, if within the limit; and what `about` has of it."""
    found, refused = {}, set()

    def call(way):
        # Beyond its size `Direct` refuses.
        if way in refused:
            return
        kept.forget()  # Each call makes its preconditioner itself.
        try:
            scores = ki.influence(model, test, train, method=WAYS[way], damping=DAMPING, verbose=0)
        except ValueError:
            refused.add(way)
            return
        found[way] = about(scores)

    actions = {way: lambda way=way: call(way) for way in WAYS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ki.ConvergenceWarning)
        seconds = alternate(actions, options.repeats, options.limit)[3]
    return {way: s for way, s in seconds.items() if way not in refused}, found


def about(scores):
    """The largest residual, the passes and the solver."""
    solver, sketched = scores.solver["class_name"], scores.solver["config"].get("preconditioner")
    solver += ", a sketch if needed" if sketched == "nystrom" else ""
    return float(scores.residual.max()), float(scores.passes), solver


def cell(seconds, residual, passes, _):
    shown = f"{seconds:.2f}, {passes:.0f}"
    return shown if residual <= EXACT else f"{shown} ({residual:.0e})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60, help="seconds of one call of --later")
    parser.add_argument("--later", action="store_true", help="later calls, not the first")
    parser.add_argument("--way", choices=list(WAYS), help="a single first call, as JSON")
    chosen = parser.parse_args()
    first_call(chosen.cases[0], chosen.way) if chosen.way else main(chosen)
