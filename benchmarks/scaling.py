"""What a pass over Dask arrays costs on a cluster: measured here, and what follows for larger ones.

python benchmarks/scaling.py [--workers 2] [--out benchmarks/results/scaling-all.json]

Workers on one machine share its cores, so they cannot show speed-up. What they can show is what
a pass is made of. Measured are

    task       seconds a task takes besides its work, on an idle cluster
    example    seconds of one core for a product with the curvature: one example, weight and vector
    send       seconds a byte takes to a worker, with all that packs and unpacks it
    add        seconds a byte takes to be added up in a worker, once it is there
    overhead   processor time of that product over Dask arrays in 16 chunks, of it over arrays

and with k vectors of p float32 weights, n examples, W workers of one core and c chunks each

    work       n p k example / W
    tasks      c W task                       the scheduler takes one after another
    vectors    4 p (k + 1) send log2(2 W)     the model and the vectors, from worker to worker
    sums       8 p k (send + add) 7 log8(8 W) an eight at each height; c - 1 more added beside it

are the parts of a pass. All but the tasks grow with p k, so it is the examples a worker has that
decide: below the last column's number, what is sent takes longer than the work.
"""

import argparse
import json
import math
import os
import pathlib
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WORKERS = (16, 64, 256, 1024)
SIZES = (1e5, 1e6, 1e7, 1e8)
VECTORS, CHUNKS, EXAMPLES = 10, 4, 10_000_000


def seconds(function, repeats=5, clock=time.perf_counter):
    """The least of some runs, after one that does not count."""
    function()
    found = []
    for _ in range(repeats):
        start = clock()
        function()
        found.append(clock() - start)
    return min(found)


def product_costs(width=512, n=4096, repeats=5):
    """Of a Gauss-Newton product of an MLP on one core: "example" and "overhead"."""
    import dask.array as da
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_influence as ki

    tf.config.threading.set_intra_op_parallelism_threads(1)
    rng = np.random.default_rng(0)
    layers = [keras.layers.Dense(width, "gelu"), keras.layers.Dense(width, "gelu")]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    plain = rng.normal(size=(n, 64)).astype("float32"), rng.integers(0, 10, n)
    chunked = tuple(da.from_array(part, chunks=(n // 16, *part.shape[1:])) for part in plain)
    # In the same batches: what larger ones save is not what is asked here.
    options = {"curvature": "gauss_newton", "batch_size": n // 16}
    operators = [ki.operator(model, data, **options) for data in (plain, chunked)]
    rows = rng.normal(size=(VECTORS, operators[0].size)).astype("float32")
    costs = [
        seconds(lambda o=operator: o.matmat(rows), repeats, time.process_time)
        for operator in operators
    ]
    example = costs[0] / (n * operators[0].size * VECTORS)
    return {"example": example, "overhead": costs[1] / costs[0]}


def cluster_costs(workers, megabytes=64, tasks=400):
    """Of an idle cluster on this machine: "task", "send" and "add" seconds."""
    import dask
    import numpy as np
    from distributed import Client, LocalCluster

    from keras_influence.engine.passes.sums import added

    options = {"dashboard_address": None, "memory_limit": 0, "threads_per_worker": 1}
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        names = list(client.scheduler_info()["workers"])
        size = megabytes * 2**20

        def many():
            nothing = dask.delayed(_nothing, pure=False)
            client.gather(client.compute([nothing() for _ in range(tasks)]))

        def sent():
            there = client.submit(_made, size, workers=names[0], pure=False)
            start = time.perf_counter()
            client.submit(len, there, workers=names[-1], pure=False).result()
            return time.perf_counter() - start

        task = seconds(many) / tasks
        sent()
        send = max(0.0, min(sent() for _ in range(5)) - task) / size
    parts = [np.ones(size // 8) for _ in range(8)]
    return {"task": task, "send": send, "add": seconds(lambda: added(parts)) / (7 * size)}


def _nothing():
    return None


def _made(size):
    import numpy as np

    return np.ones(size // 8)


def parts_of_a_pass(costs, p, workers, k=VECTORS, n=EXAMPLES, chunks=CHUNKS):
    """Seconds of each part of one pass; see above."""
    groups = max(1.0, math.log(8 * workers, 8))
    return {
        "work": n * p * k * costs["example"] / workers,
        "tasks": chunks * workers * costs["task"],
        "vectors": 4 * p * (k + 1) * costs["send"] * math.log2(2 * workers),
        "sums": 8 * p * k * (costs["send"] + costs["add"]) * (7 * groups + chunks - 1),
    }


def examples_where_sending_dominates(costs, workers, k=VECTORS, chunks=CHUNKS):
    """Examples a worker has when vectors and sums take as long as the work."""
    parts = parts_of_a_pass(costs, 1.0, workers, k, workers, chunks)
    return (parts["vectors"] + parts["sums"]) / parts["work"]


def table(costs):
    """The model of a pass as lines of Markdown."""
    lines = [
        f"{EXAMPLES:,} examples, {VECTORS} vectors, {CHUNKS} chunks a worker; seconds a pass",
        "",
        "| p | workers | work | tasks | vectors | sums | of it work | examples a worker, sending = work |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in SIZES:
        for workers in WORKERS:
            parts = parts_of_a_pass(costs, p, workers)
            share = parts["work"] / sum(parts.values())
            cells = [f"{value:.3g}" for value in parts.values()]
            edge = examples_where_sending_dominates(costs, workers)
            lines.append(
                f"| {p:.0e} | {workers} | {' | '.join(cells)} | {share:.0%} | {edge:,.0f} |"
            )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    costs = {**product_costs(), **cluster_costs(arguments.workers)}
    print(json.dumps({name: float(f"{value:.3g}") for name, value in costs.items()}))
    print("\n".join(table(costs)))
    if arguments.out:
        arguments.out.write_text(json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
