"""What Dask arrays change: rounding, bits, processor time, memory, and what a killed worker costs.

python benchmarks/dask_figures.py [agreement memory processor kill] [--out benchmarks/results/dask.md]

Each part runs in a process of its own, and prints rows of a table: the figure, what was found,
and the bound that it is to keep. Seconds ("kill") need a quiet machine; the others do not.
Softmax regression on random numbers: what is asked is what chunks and processes cost, which does
not depend on what is learnt.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLUSTER = {"dashboard_address": None, "memory_limit": 0, "threads_per_worker": 1}
QUIET = {"damping": 1e-3, "verbose": 0}
N, FEATURES, CLASSES, CHUNK = 200_000, 784, 10, 4000


def softmax(features=FEATURES, classes=CLASSES):
    import keras

    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(classes, "softmax", kernel_regularizer=keras.regularizers.L2(1e-3))
    model = keras.Sequential([keras.Input((features,)), dense])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def made(n=N, chunk=CHUNK, dtype="float32"):
    """Training data that are made chunk by chunk: 627 MB of float32 as they stand."""
    import dask.array as da
    import numpy as np

    def block(block_info=None):
        (start, stop), (_, width) = block_info[None]["array-location"]
        return np.random.default_rng(start).standard_normal((stop - start, width), dtype)

    x = da.map_blocks(block, chunks=((chunk,) * (n // chunk), (FEATURES,)), dtype=dtype)
    return x, abs(x[:, :CLASSES]).argmax(axis=1)


def agreement():
    """Products and scores in float64 beside those of the arrays, and their bits on schedulers."""
    import dask
    import keras
    import numpy as np
    from distributed import Client, LocalCluster

    import keras_influence as ki

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model, train = softmax(), made(4000, 250, "float64")
    plain = dask.compute(*train)
    v = np.random.default_rng(0).normal(size=(FEATURES * CLASSES + CLASSES, 10))
    test = tuple(part[:10] for part in plain)

    def answers(data):
        options = {"curvature": "gauss_newton", **QUIET}
        found = ki.influence(model, test, data, method=ki.CG(tol=1e-10), **options)
        return ki.hvp(model, v, data), found.values

    expected, there = answers(plain), []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            there.append(answers(train))
    for workers in (2, 3):
        with LocalCluster(n_workers=workers, **CLUSTER) as cluster, Client(cluster):
            there.append(answers(dask.persist(*train)))
    for name, mine, found, bound in zip(("product", "scores"), expected, there[0], (1e-14, 1e-7)):
        error = np.linalg.norm(found - mine) / np.linalg.norm(mine)
        yield f"{name}, float64, relative to the arrays", f"{error:.2g}", f"{bound:g}"
    same = all(np.array_equal(a, b) for other in there[1:] for a, b in zip(there[0], other))
    yield "synchronous, threads, 2 and 3 workers", "the same bits" if same else "OTHER BITS", "same"


def memory():
    """Peak of this process above what it has after the same questions on two chunks."""
    import tempfile

    import dask
    import numpy as np
    from distributed import Client, LocalCluster

    import keras_influence as ki

    model, train = softmax(), made()
    test = dask.compute(*made(100, 100))
    solver = ki.CG(tol=1e-2, preconditioner=None)
    vector = np.ones(FEATURES * CLASSES + CLASSES)
    options = {"method": solver, "curvature": "gauss_newton", **QUIET}

    def product(data, _):
        ki.hvp(model, vector, data)

    def scores(data, folder):
        store = pathlib.Path(folder, str(len(data[0])))
        ki.influence(model, test, data, store=store, **options)

    questions = {"a pass: one product": product, "storing 100 x 200,000 scores": scores}

    def measured(where):
        with tempfile.TemporaryDirectory() as folder:
            for question in questions.values():
                question(tuple(part[: 2 * CHUNK] for part in train), folder)
            for what, question in questions.items():
                before = _resident("VmRSS")
                pathlib.Path("/proc/self/clear_refs").write_text("5")
                question(train, folder)
                yield f"{what}, {where}", f"{_resident('VmHWM') - before:.0f} MB", "100 MB"

    yield from measured("chunk after chunk here")
    with LocalCluster(n_workers=2, **CLUSTER) as cluster, Client(cluster):
        yield from measured("the client of two workers")


def _resident(name):
    """Megabytes of this process: now (VmRSS), or the most since they were last cleared (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def processor():
    """Of a product of ten vectors with an MLP's curvature, in the same batches."""
    import scaling

    overhead = scaling.product_costs()["overhead"]
    yield "processor time of ten vectors, of plain", f"{overhead:.2f}", "1.35"


def kill():
    """A solve on three workers, one of which is killed when a third of the time has gone."""
    import dask
    import numpy as np
    from distributed import Client, LocalCluster

    import keras_influence as ki

    model, train = softmax(), made(24_000)
    vectors = np.random.default_rng(0).normal(size=(FEATURES * CLASSES + CLASSES, 10))
    method = ki.CG(tol=1e-30, max_iter=40, preconditioner=None)

    def solve():
        start = time.perf_counter()
        found = ki.inverse_hvp(model, vectors, train, method=method, **QUIET)
        return time.perf_counter() - start, found

    with LocalCluster(n_workers=3, **CLUSTER) as cluster, Client(cluster) as client:
        train = dask.persist(*train)
        solve()
        (usual, expected), pid = solve(), client.run(os.getpid).popitem()[1]
        threading.Timer(usual / 3, os.kill, (pid, signal.SIGKILL)).start()
        took, found = solve()
    same = "the same bits" if np.array_equal(found, expected) else "OTHER BITS"
    yield "a killed worker", f"{usual:.0f} -> {took:.0f} s, {same}", "twice, same"


PARTS = {part.__name__: part for part in (agreement, memory, processor, kill)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=list(PARTS))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--here", action="store_true", help="in this process")
    arguments = parser.parse_args()
    if arguments.here:
        for part in arguments.parts:
            for row in PARTS[part]():
                print(f"| {' | '.join(row)} |", flush=True)
        return
    lines = ["# Dask arrays: what `python benchmarks/dask_figures.py` prints", ""]
    lines += ["| | found | bound |", "|---|---|---|"]
    for part in arguments.parts:
        command = [sys.executable, __file__, "--here", part]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(found, end="", flush=True)
        lines += [line for line in found.splitlines() if line.startswith("|")]
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
