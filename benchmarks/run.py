"""One table of what influence functions cost, in passes of one gradient over the same data.

    python benchmarks/run.py --quick                    # under two minutes on two idle cores
    python benchmarks/run.py --part hvp_and_scores      # one of `PARTS`; all without --part

Prints Markdown, and writes Markdown and JSON to `benchmarks/results/`. A pass is the Keras
model's own compiled gradient of all training data, measured in turn with the rest, in batches of
256; for `hvp_and_scores`, whose package chooses its own, at the fastest of several batch sizes. Times are
medians of five.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import measure
import memory
import report
from problems import MODELS, environment, fashion_mnist

from keras_influence import CG, Direct, Nystrom

RESULTS = pathlib.Path(__file__).parent / "results"
# (model, n_train, vectors of hvp, vectors of scores). The deep models are slow: smaller n.
PRODUCTS = [
    ("softmax", 5000, (1, 10, 100), (1, 10, 100, 1000)),
    ("mlp", 5000, (1, 10, 100), (1, 10, 100)),
    ("conv", 1000, (1, 10), (1, 10, 100, 1000)),
    ("transformer", 500, (1, 10), (1, 10, 100)),
    ("resnet20", 256, (1,), (1, 10, 100)),
    ("bilstm", 500, (1,), (1, 10)),
]
SOLVER = CG(tol=1e-4, preconditioner=Nystrom(50))
CALLS = [
    ("softmax", 5000, 10, {"method": CG(tol=1e-5), "damping": 0.01}),
    ("softmax", 5000, 10, {"method": CG(tol=1e-5, preconditioner=Nystrom(50)), "damping": 0.01}),
    ("softmax", 5000, 100, {"method": CG(tol=1e-5, preconditioner=Nystrom(50)), "damping": 0.01}),
    ("mlp", 2000, 10, {"method": SOLVER, "damping": 0.01, "curvature": "gauss_newton"}),
    ("conv", 500, 10, {"method": SOLVER, "damping": 0.01, "curvature": "gauss_newton"}),
]
GROWTH = [("softmax", n, (), (1, 100)) for n in (5000, 20000, 60000)]
MEMORY = [
    *(("scores", "mlp", n, 100) for n in (5000, 20000, 60000)),
    *(("scores", "conv", n, 100) for n in (1000, 4000)),
    ("hvp", "mlp", 5000, 10),
    ("hvp", "mlp", 5000, 100),
    ("hvp", "conv", 1000, 10),
    ("influence", "mlp", 2000, 100),
    ("influence", "mlp", 8000, 100),
    ("influence", "mlp", 8000, 1000),
    ("influence", "conv", 1000, 10),
]
QUICK = [
    ("softmax", 1000, (1, 10), (1, 100)),
    ("mlp", 1000, (1, 10), (1, 10)),
    ("conv", 256, (1,), (1, 100)),
]


def hvp_and_scores(options, cases=PRODUCTS):
    """Public `hvp`, and scores, of each model."""
    rows = []
    for name, n, vectors, score_vectors in cases:
        if not options.models or name in options.models:
            rows += measure.products(
                name, n, vectors, score_vectors, options.repeats, options.limit
            )
    return report.products(rows), rows


def growth(options):
    """Seconds per training example as n grows."""
    return hvp_and_scores(options, GROWTH)


def whole_calls(options, cases=CALLS):
    """`influence`, first and later calls, by stages."""
    rows = [
        measure.whole_call(name, n, n_test, options.repeats, **call)
        for name, n, n_test, call in cases
        if not options.models or name in options.models
    ]
    return report.calls(rows), rows


def large_call(options):
    """60,000 training by 1,000 test examples, once, softmax regression: by the matrix, and without it."""
    rows = [
        measure.whole_call("softmax", 60000, 1000, 1, method=method, damping=0.01)
        for method in (Direct(), CG(tol=1e-3))
    ]
    return report.calls(rows), rows


def peak_memory(options):
    """Growth of a process while it works, beyond the model and the data; bound: `memory.py`."""
    rows = [memory.measured(*case) for case in MEMORY]
    return report.memory(rows), rows


def import_time(options):
    """Seconds that importing the package adds to importing Keras and TensorFlow."""
    code = (
        "import time, keras, tensorflow; s = time.perf_counter(); import keras_influence; "
        "print(time.perf_counter() - s)"
    )
    times = []
    for _ in range(options.repeats + 1):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        times.append(float(done.stdout))
    median = sorted(times[1:])[len(times[1:]) // 2]
    return f"Import beyond Keras and TensorFlow: {median:.2f} s", [{"seconds": times}]


PARTS = {
    part.__name__: part
    for part in (hvp_and_scores, growth, whole_calls, large_call, peak_memory, import_time)
}


def main(options):
    parts = [options.part] if options.part else list(PARTS)
    record = {"environment": environment(), "data": fashion_mnist(1)[2], "seed": 0, "parts": {}}
    if options.quick:
        parts = ["hvp_and_scores"]
    pages = [f"{record['data']}. {record['environment']}, seed 0\n"]
    for name in parts:
        start = time.perf_counter()
        part = PARTS[name]
        text, rows = part(options, QUICK) if options.quick else part(options)
        pages.append(f"## {name}\n\n{part.__doc__}\n\n{text}\n")
        record["parts"][name] = rows
        print(pages[-1], f"({time.perf_counter() - start:.0f} s)", flush=True)
    folder = pathlib.Path(options.output or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    stem = "quick" if options.quick else "-".join(options.models or []) or "all"
    stem = f"{options.part}-{stem}" if options.part else stem
    (folder / f"{stem}.md").write_text("\n".join(pages))
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small table")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds one action may take")
    parser.add_argument("--output", help="folder for the results")
    main(parser.parse_args())
