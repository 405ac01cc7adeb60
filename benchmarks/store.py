"""More scores than memory should hold: 60,000 training by 10,000 test images, killed and resumed.

    python benchmarks/store.py FOLDER [--train 60000] [--test 10000] [--kill 300]

An MLP of 101,770 weights on Fashion-MNIST, EK-FAC. `influence(..., store=)` runs in a process of
its own that is killed (SIGKILL) after --kill seconds and started again; a third process asks for
the ten strongest with `top_influence`, which never holds the matrix, for the first --top test
images, and they are compared with those in the store. Printed are seconds, the blocks that the kill
left, and the largest memory beyond model and data. The store takes 4 bytes a score.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from memory import Peak

K = 10


def main(options):
    from problems import environment

    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{options.train} x {options.test}, 4 bytes each: ", end="")
    print(f"{4e-9 * options.train * options.test:.2f} GB. {environment()}\n", flush=True)
    start = time.perf_counter()
    first = subprocess.Popen(command(options, "fill"))
    try:
        first.wait(options.kill)
        print(f"It was done before it could be killed, in {time.perf_counter() - start:.0f} s.")
    except subprocess.TimeoutExpired:
        first.send_signal(signal.SIGKILL)
        first.wait()
        print(f"Killed after {options.kill:g} s: {done(options)} test examples are there.")
    print("Resumed:", said(asked(options, "fill")), flush=True)
    print("top_influence:", said(asked(options, "top")))
    print("Agrees with the store:", agreement(options))


def command(options, task):
    numbers = [str(n) for n in (options.train, options.test, options.top)]
    return [sys.executable, __file__, str(options.folder), "--task", task, *numbers]


def asked(options, task):
    """What a process of its own says of a task."""
    found = subprocess.run(command(options, task), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def said(found):
    return f"{found['seconds']:.0f} s, {found['megabytes']:.0f} MB beyond model and data"


def done(options):
    from keras_influence.questions.store_files import read_state

    return (read_state(options.folder / "scores.zarr") or {"done": 0})["done"]


def agreement(options):
    """Whether the strongest of the store are those that `top_influence` found."""
    from keras_influence import InfluenceScores

    scores = InfluenceScores.open(options.folder / "scores.zarr")
    values = scores.values[: options.top]
    with np.load(options.folder / "top.npz") as found:
        kept = np.take_along_axis(values, found["indices"], 1)
        best = np.sort(values, 1)[:, ::-1][:, :K]
        error = np.abs(kept - best).max() / np.abs(best).max()
    return f"largest difference {error:.1e} of the largest score, {scores.n_test} test examples"


def task(options):
    """The work of one process."""
    import keras
    from problems import MODELS, fashion_mnist

    import keras_influence as ki

    x, y, _ = fashion_mnist(options.train)
    tests = options.test if options.task == "fill" else options.top
    test = tuple(part[:tests] for part in fashion_mnist(options.test, "test")[:2])
    model, file = MODELS["mlp"](), options.folder / "model.npz"
    if not file.exists():
        keras.utils.set_random_seed(0)
        model.fit(x, y, epochs=2, batch_size=128, verbose=0)
        np.savez(file, *model.get_weights())
    with np.load(file) as weights:
        model.set_weights([weights[name] for name in weights.files])
    start = time.perf_counter()
    with Peak() as peak:
        about = {"method": "ekfac", "damping": 0.01, "verbose": 0}
        if options.task == "fill":
            ki.influence(model, test, (x, y), store=options.folder / "scores.zarr", **about)
        else:
            found = ki.top_influence(model, test, (x, y), k=K, **about)
            np.savez(options.folder / "top.npz", indices=found.proponents.indices)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "megabytes": peak.top - peak.start}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=60_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--top", type=int, default=200)
    parser.add_argument("--kill", type=float, default=300.0, help="seconds")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.task:
        o.task, *numbers = o.task
        o.train, o.test, o.top = (int(number) for number in numbers)
        task(o)
    else:
        main(o)
