"""Peak memory of one question, in a process of its own, and the bound that it should keep.

python benchmarks/memory.py scores mlp 5000 100

In bytes, with p parameters, k vectors, n training examples, batches of b, and per example a
numbers in all outputs of all layers:

    hvp         24 p k + 32 (p + a b) v        v vectors share a batch: at most 2**20 / p (8 at least,
                                               128 at most), for convolutions 10
    scores      12 p k + 4 n k + 12 b w + 32 a b   w: 128 outputs of the widest dense layer, or the
                                               weights of the largest other layer up to 2**18
    influence   the same for a block of k      + 64 p k, CG's own arrays in float64, + 4 n n_test,
                                               the result; k: `blocks.block_size`, n_test at most;
                                               + 8 p k for several blocks: what an allocator keeps

None grows with n beyond the result. With `Woodbury`, or where CG takes it by itself, contributions of examples are
beside that: 2**30 bytes at most.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def measured(what, name, n, vectors, seed=0):
    """Megabytes by which the process grows at most while it works; see `Peak`."""
    command = [sys.executable, __file__, what, name, str(n), str(vectors), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bound(what, model, n, k, batch=256):
    """Bytes that a question may take beyond the model and the data; see above."""
    import keras
    import numpy as np

    from keras_influence.questions.blocks import block_size

    p = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    asked, k = k, min(k, block_size(p)) if what == "influence" else k
    a = sum(int(np.prod(layer.output.shape[1:])) for layer in model.layers)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    others = [layer.count_params() for layer in model.layers if layer not in dense]
    shared = min(k, 10 if any(others) else max(8, min(128, 2**20 // p)))
    wide = max(128 * max(layer.units for layer in dense), *(min(c, 2**18) for c in others))
    hvp = 24 * p * k + 32 * (p + a * batch) * shared
    scores = 12 * p * k + 4 * n * k + 12 * batch * wide + 32 * a * batch
    influence = hvp + scores + (64 if asked == k else 72) * p * k + 4 * n * asked
    return {"hvp": hvp, "scores": scores, "influence": influence}[what]


def _resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Peak:
    """The largest resident size while the block ran, sampled every 5 ms."""

    def __enter__(self):
        self.start = self.top = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.005):
            self.top = max(self.top, _resident())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.top = max(self.top, _resident())


def main(what, name, n, vectors, seed):
    import numpy as np
    from problems import MODELS, data

    import keras_influence as ki
    from keras_influence.engine.problem import Problem

    x, y = data(name, n)
    model = MODELS[name]()
    rng = np.random.default_rng(seed)
    size = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    v = rng.standard_normal((size, vectors)).astype(np.float32)
    if what == "scores":
        problem = Problem(model, (x, y))
        rows = np.ascontiguousarray(v.T)
        few = Problem(model, (x[:512], y[:512]))
        few.scores(rows[:2])
        action = functools.partial(problem.scores, rows)
    elif what == "influence":
        options = {"method": ki.CG(tol=1e-2, max_iter=5), "curvature": "gauss_newton", "verbose": 0}
        call = functools.partial(ki.influence, model, damping=0.1, **options)
        test = data(name, vectors, "test")
        call((test[0][:2], test[1][:2]), (x[:512], y[:512]))
        action = functools.partial(call, test, (x, y))
    else:
        ki.hvp(model, v[:, : min(vectors, 2)], (x[:512], y[:512]))
        action = functools.partial(ki.hvp, model, v, (x, y))
    start = time.perf_counter()
    with Peak() as peak:
        action()
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "what": what,
                "model": name,
                "n": len(x),
                "vectors": vectors,
                "p": size,
                "megabytes": peak.top - peak.start,
                "bound": bound(what, model, len(x), vectors) / 1e6,
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    what, name, *numbers = sys.argv[1:]
    main(what, name, *(int(number) for number in numbers))
