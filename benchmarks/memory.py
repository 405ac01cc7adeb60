"""Peak memory of one question, in a process of its own.

python benchmarks/memory.py scores mlp 5000 100
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
    """Megabytes by which the process grows at most while it works; see `_Peak`."""
    command = [sys.executable, __file__, what, name, str(n), str(vectors), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


class _Peak:
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
    from keras_influence.session import Session

    x, y = data(name, n)
    model = MODELS[name]()
    rng = np.random.default_rng(seed)
    size = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    v = rng.standard_normal((size, vectors)).astype(np.float32)
    if what == "scores":
        session = Session(model, (x, y), curvature="hessian", damping=0.0)
        rows = np.ascontiguousarray(v.T)
        few = Session(model, (x[:512], y[:512]), curvature="hessian", damping=0.0)
        few.scores(rows[:2])
        action = functools.partial(session.scores, rows)
    else:
        ki.hvp(model, v[:, : min(vectors, 2)], (x[:512], y[:512]))
        action = functools.partial(ki.hvp, model, v, (x, y))
    start = time.perf_counter()
    with _Peak() as peak:
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
                "seconds": seconds,
            }
        )
    )


if __name__ == "__main__":
    what, name, *numbers = sys.argv[1:]
    main(what, name, *(int(number) for number in numbers))
