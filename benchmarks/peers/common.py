"""What every peer's script shares: the problem's file, the command line, the clock, the result.

NumPy only, because each script runs in an environment of its own. `README.md` beside this file
documents both formats.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class Problem:
    """One attribution problem, as `compare.py` and `lds.py` export it.

    Attributes:
        kind: name of the network, for messages; its form follows from `weights`.
        x_train, y_train, x_test, y_test: images (n, h, w, c) and integer labels.
        weights: the Keras weights, kernel and bias of each layer in turn.
        damping: λ of H + λI.
        tol: the relative residual that solvers are asked for.
        target: `"loss"` or `"margin"`, the function of a test example that is explained.
        test_loss: mean cross-entropy of the test examples, to check the rebuilt network.
    """

    kind: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    weights: list
    damping: float
    tol: float
    target: str
    test_loss: float

    def save(self, path):
        arrays = dataclasses.asdict(self)
        arrays.update({f"weight_{i}": w for i, w in enumerate(arrays.pop("weights"))})
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path):
        with np.load(path, allow_pickle=False) as file:
            count = sum(name.startswith("weight_") for name in file.files)
            values = {f.name: file[f.name] for f in dataclasses.fields(cls) if f.name in file}
            values["weights"] = [file[f"weight_{i}"] for i in range(count)]
        for name in ("kind", "target"):
            values[name] = str(values[name])
        for name in ("damping", "tol", "test_loss"):
            values[name] = float(values[name])
        return cls(**values)

    def check_loss(self, loss):
        """Refuse a rebuilt network that is not the exported one."""
        if not abs(loss - self.test_loss) <= 1e-4 * abs(self.test_loss) + 1e-6:
            raise ValueError(
                f"The rebuilt network's test loss should be {self.test_loss:.7g}, the exported "
                f"one. Received: {loss:.7g}"
            )


class Clock:
    """Seconds of the phases of one call."""

    def __init__(self):
        self.phases = {}

    @contextlib.contextmanager
    def __call__(self, phase):
        start = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one call computed.

    Attributes:
        scores: (n_test, n_train), +∇f(test)ᵀ (H + λI)⁻¹ ∇ℓ(train) / n.
        solution: (n_test, p) rows (H + λI)⁻¹ ∇f(test) in Keras order, or None.
        details: what else there is to say, for the record.
    """

    scores: np.ndarray
    solution: np.ndarray | None = None
    details: dict = dataclasses.field(default_factory=dict)


def main(methods, prepare, packages, description):
    """Read the command line, run the calls, write the result.

    Args:
        methods: dict from name to `compute(problem, prepared, settings, clock) -> Answer`;
            the first is the default. `settings` is a dict.
        prepare: `prepare(problem, threads)`, what belongs to loading: the network.
        packages: distributions whose versions are recorded.
        description: of the script.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("problem", help="the problem's .npz file")
    parser.add_argument("result", help="the .npz file to write")
    parser.add_argument("--method", choices=list(methods), default=next(iter(methods)))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings")
    parser.add_argument("--calls", type=int, default=2, help="calls in this process")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    settings = {k: json.loads(v) for k, v in (pair.split("=") for pair in options.set)}

    problem = Problem.load(options.problem)
    prepared = prepare(problem, options.threads)
    before, seconds, processor, phases = _resident("VmRSS"), [], [], []
    for _ in range(options.calls):
        clock = Clock()
        start, busy = time.perf_counter(), time.process_time()
        answer = methods[options.method](problem, prepared, dict(settings), clock)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
        phases.append(clock.phases)
    record = {
        "seconds": seconds,
        "processor_seconds": processor,
        "phases": phases,
        "memory_before_mb": before,
        "memory_peak_mb": _resident("VmHWM"),
        "method": options.method,
        "settings": settings,
        "details": answer.details,
        "versions": {"python": platform.python_version(), **_versions(packages)},
    }
    arrays = {"scores": np.asarray(answer.scores), "record": np.array(json.dumps(record))}
    if answer.solution is not None:
        arrays["solution"] = np.asarray(answer.solution)
    np.savez(options.result, **arrays)
    print(json.dumps(record))


def record_of(result):
    """The record in a result that `main` wrote."""
    return json.loads(str(result["record"]))


def _resident(name):
    """The process's resident memory in MB: at present (VmRSS), or at its peak (VmHWM).

    `getrusage` has the peak of the parent in it, which a new program inherits.
    """
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def _versions(packages):
    from importlib.metadata import version

    return {name: version(name) for name in packages}
