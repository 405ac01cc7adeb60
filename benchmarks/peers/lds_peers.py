"""The peers' scores for the linear datamodelling scores of `lds.py`.

    python benchmarks/lds.py FOLDER --only-train --export EXPORT
    python benchmarks/peers/lds_peers.py ENVIRONMENTS EXPORT PEERS [--models mlp conv] [--only trak]
    python benchmarks/lds.py FOLDER --peers PEERS

Reads EXPORT/<model>.npz and writes PEERS/<model>/<method>.npz with `scores` (200, 1000), positive
where leaving the training example out raises the margin, and `seconds` of one reference model.
"x 3" is the mean of the scores of three reference models, as `lds.py` does it for its own. Files
that are there already are kept.
"""

import argparse
import pathlib
import subprocess
import tempfile

import numpy as np
from common import Problem, record_of

HERE = pathlib.Path(__file__).resolve().parent

# Method's name: peer, its method, damping, settings, reference models to average.
METHODS = {
    "kronfluence EK-FAC, own damping": ("kronfluence", "ekfac", 0.0, {"heuristic_damping": 1}, 3),
    "kronfluence EK-FAC, damping 0.0001": ("kronfluence", "ekfac", 1e-4, {}, 1),
    "kronfluence EK-FAC, damping 0.001": ("kronfluence", "ekfac", 1e-3, {}, 3),
    "kronfluence EK-FAC, damping 0.01": ("kronfluence", "ekfac", 1e-2, {}, 3),
    "kronfluence EK-FAC, damping 0.1": ("kronfluence", "ekfac", 1e-1, {}, 1),
    "TRAK, 512 dimensions": ("trak", "trak", 0.0, {"dim": 512, "batch": 1000}, 3),
    "TRAK, 2,048 dimensions, ridge 0.1": (
        "trak",
        "trak",
        0.0,
        {"dim": 2048, "batch": 1000, "ridge": 0.1},
        3,
    ),
    "pyDVL CG, Hessian, damping 0.1": (
        "pydvl",
        "block_cg",
        1e-1,
        {"max_iter": 60, "batch": 250},
        1,
    ),
    "pyDVL CG, Hessian, damping 1": ("pydvl", "block_cg", 1.0, {"max_iter": 60, "batch": 250}, 1),
    "captum TracInCP, last checkpoint": ("captum", "tracin", 0.0, {"batch": 100}, 1),
}


def main(options):
    for kind in options.models:
        (options.peers / kind).mkdir(parents=True, exist_ok=True)
        for name, (peer, method, damping, settings, count) in METHODS.items():
            if options.only and peer not in options.only:
                continue
            if (options.peers / kind / f"{name}.npz").exists() and not options.again:
                continue
            parts = []
            for k in range(min(count, options.references)):
                scores, seconds = one(options, kind, k, peer, method, damping, settings)
                if scores is None:
                    print(f"{kind}, {name}: {seconds}", flush=True)
                    break
                parts.append(scores)
                print(f"{kind}, {name}, model {k}: {seconds:.1f} s", flush=True)
            if parts:
                keep(options.peers / kind / name, parts[0], seconds)
            if len(parts) > 1:
                keep(options.peers / kind / f"{name} x {len(parts)}", np.mean(parts, 0), seconds)


def keep(path, scores, seconds):
    np.savez(path.with_name(path.name + ".npz"), scores=scores, seconds=seconds)


def one(options, kind, k, peer, method, damping, settings):
    """Scores and seconds of one method for reference model k; or None and why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file, result = pathlib.Path(folder) / "problem.npz", pathlib.Path(folder) / "result.npz"
        problem(options.export / f"{kind}.npz", kind, k, damping).save(file)
        command = [options.environments / peer / "bin" / "python", HERE / f"run_{peer}.py", file]
        command += [result, "--method", method, "--calls", "1"]
        command += ["--set", *(f"{name}={value}" for name, value in settings.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not result.exists():
            return None, done.stderr.strip().splitlines()[-1][:200]
        with np.load(result) as found:
            return found["scores"].copy(), record_of(found)["seconds"][0]


def problem(file, kind, k, damping):
    """Reference model k of an export as a `Problem`, with the margin as target."""
    with np.load(file) as export:
        count = sum(name.startswith(f"weights_{k}_") for name in export.files)
        data = [export[name] for name in ("x_train", "y_train", "x_test", "y_test")]
        logits, labels = export[f"logits_{k}"].astype(np.float64), export["y_test"]
        loss = np.logaddexp.reduce(logits, 1) - logits[np.arange(len(labels)), labels]
        weights = [export[f"weights_{k}_{i}"] for i in range(count)]
    form = "strided-conv" if kind == "conv" else kind
    return Problem(form, *data, weights, damping, 1e-2, "margin", loss.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("environments", "export", "peers"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"])
    parser.add_argument("--only", nargs="+", help="these peers")
    parser.add_argument("--references", type=int, default=3, help="reference models at most")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    main(parser.parse_args())
