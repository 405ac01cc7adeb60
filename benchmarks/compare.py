"""The same influence scores by this package and by other libraries, in one run, as a table.

Every contender gets the same exported problem (`peers/README.md`) and runs in a process of its
own, in turn, `--rounds` times. A process makes two calls: the first, with tracing and warming
up, and a later one. Importing and loading are not counted. "processor" is the processor time of the
later call, all threads together, which a busy machine disturbs less. Rounds are kept in --work, and
a run that was cut off goes on; --fresh forgets them. Each contender's own settings stand
in `peers/contenders.py`; those marked exact were tuned to be as fast as they can be at the accuracy that
the problem asks for: a relative error of the scores of 1e-4 against the dense float64 solution
(softmax regression), or a relative residual of 1e-3 of the linear systems (MLP, conv net). The
others are approximations: their time stands beside the error that they have.

All solve with the Hessian of the mean cross-entropy plus λI, which is the Hessian of the loss
with the regulariser λ/2 ‖θ‖². For the MLP and the conv net λ is large enough that the matrix
is positive definite: no peer has the Gauss-Newton matrix.

    benchmarks/peers/install.sh ENVIRONMENTS
    python benchmarks/compare.py ENVIRONMENTS [--work FOLDER] [--quick] [--problems softmax-10 ...]
        [--peers keras_influence pydvl ...] [--exact] [--rounds 3] [--json FILE]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

import numpy as np
from common import Problem, record_of
from contenders import CONTENDERS, PROBLEMS, QUICK
from problems import MODELS, environment, fashion_mnist, trained


def main(options):
    print(f"{environment()}, {options.rounds} rounds, {time.strftime('%Y-%m-%d')}\n", flush=True)
    report = {"environment": environment(), "rounds": options.rounds, "tables": {}}
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.problems:
        setup = PROBLEMS[name]
        if options.quick:
            setup = dataclasses.replace(setup, **QUICK[name])
        problem, file = export(name, setup, options.work)
        chosen = [
            c
            for c in CONTENDERS
            if c.peer in options.peers and name in c.only and (c.exact or not options.exact)
        ]
        kept = Kept(options.work / f"{name}-{setup.n}-records.json", options.fresh)
        for i in range(options.rounds):
            for contender in chosen:
                if len(kept.of(contender)) <= i:
                    kept.add(contender, run(contender, name, file, options))
        rows = judged(name, problem, kept, chosen, options.work)
        report["tables"][name] = {"setup": dataclasses.asdict(setup), "rows": rows}
        show(setup, rows)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


class Kept:
    """The records of a problem, in a file, so that a run that was cut off goes on."""

    def __init__(self, file, fresh):
        self._file = file
        found = file.exists() and not fresh
        self._records = json.loads(file.read_text()) if found else {}

    def of(self, contender):
        return self._records.get(contender.label, [])

    def add(self, contender, record):
        self._records.setdefault(contender.label, []).append(record)
        self._file.write_text(json.dumps(self._records))
        said = record.get("failed") or ", ".join(f"{s:.2f} s" for s in record["seconds"])
        print(f"{contender.label}: {said}", file=sys.stderr, flush=True)


def export(name, setup, folder):
    """The problem as a file, made once for each setup."""
    file = folder / f"{name}-{setup.n}.npz"
    x, y, data = fashion_mnist(setup.n)
    if not file.exists():
        model = trained(setup.kind, x, y, epochs=setup.epochs)
        weights, test = model.get_weights(), fashion_mnist(setup.n_test, "test")[:2]
        loss = model.evaluate(*test, verbose=0)
        arguments = setup.kind, x, y, *test, weights, setup.damping, setup.tol, "loss", loss
        Problem(*arguments).save(file)
    problem = dataclasses.replace(Problem.load(file), damping=setup.damping, tol=setup.tol)
    problem.save(file)
    print(f"## {name}: {setup.says}, {data}, n = {setup.n}, {setup.n_test} test examples, ", end="")
    print(f"λ = {setup.damping:g}\n", flush=True)
    return problem, file


def run(contender, name, file, options):
    """One process of one contender: its record with its arrays' file, or why it failed."""
    ours = contender.peer == "keras_influence"
    python = sys.executable if ours else options.environments / contender.peer / "bin" / "python"
    slug = "".join(c if c.isalnum() else "_" for c in contender.label)
    result = options.work / f"{name}-{slug}.npz"
    partial = options.work / f"{name}-{slug}.partial.npz"
    partial.unlink(missing_ok=True)
    script = HERE / "peers" / f"run_{contender.peer}.py"
    command = [str(python), str(script), str(file), str(partial), *contender.arguments(name)]
    paths = {"PYTHONPATH": str(HERE.parent)} if ours else {}
    surroundings = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **paths}
    try:
        done = subprocess.run(
            command,
            check=False,
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=options.timeout,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        says = f"more than {options.timeout:g} s" if hasattr(error, "timeout") else str(error)
        return {"failed": says[:200]}
    if done.returncode or not partial.exists():
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"failed": lines[-1][:200]}
    os.replace(partial, result)
    with np.load(result) as found:
        return {**record_of(found), "file": str(result)}


def judged(name, problem, kept, chosen, folder):
    """A dict for each contender: medians, accuracy, ratios to our first row."""
    import exact

    truth = None
    if problem.kind == "softmax":
        truth = folder / f"{name}-{len(problem.y_train)}-truth-{problem.damping:g}.npy"
        if not truth.exists():
            np.save(truth, exact.softmax_regression_scores(problem))
        truth = np.load(truth)
    model = MODELS[problem.kind]()
    model.set_weights(problem.weights)
    rows = []
    for contender in chosen:
        good = [r for r in kept.of(contender) if "failed" not in r]
        row = {"label": contender.label, "exact": contender.exact, "runs": kept.of(contender)}
        if good:
            row |= _medians(good)
            row |= _accuracy(exact, problem, model, good[-1], truth)
        rows.append(row)
    ours = min(
        (r["later"] for r in rows if "keras_influence" in r["label"] and "later" in r), default=None
    )
    for row in rows:
        if ours and "later" in row:
            row["ratio"] = row["later"] / ours
    return rows


def _medians(good):
    return {
        "first": float(np.median([r["seconds"][0] for r in good])),
        "later": float(np.median([min(r["seconds"][1:], default=r["seconds"][0]) for r in good])),
        "processor": float(np.median([r["processor_seconds"][-1] for r in good])),
        "peak_mb": float(np.median([r["memory_peak_mb"] for r in good])),
        "beyond_mb": float(np.median([r["memory_peak_mb"] - r["memory_before_mb"] for r in good])),
    }


def _accuracy(exact, problem, model, record, truth):
    with np.load(record["file"]) as found:
        scores = found["scores"]
        solution = found.get("solution")
    accuracy = {}
    if truth is not None and scores.shape == truth.shape:
        accuracy["error"] = exact.relative_error(scores, truth)
        accuracy["correlation"] = float(np.corrcoef(scores.ravel(), truth.ravel())[0, 1])
    if solution is not None:
        accuracy["residual"] = exact.relative_residual(problem, model, solution)
    elif "residual" in record["details"]:
        accuracy["residual"] = record["details"]["residual"]
    return accuracy


def show(setup, rows):
    head = "first call, s | later call, s | ratio | processor, s | relative error | residual | correlation | peak, MB"
    print(f"| | {head} | beyond start, MB |\n|{'---|' * 10}")
    for row in sorted(rows, key=lambda r: (not r["exact"], r.get("later", np.inf))):
        if "later" not in row:
            print(f"| {row['label']} | failed: {row['runs'][-1]['failed']} |")
            continue
        cells = [f"{row['first']:.2f}", f"{row['later']:.2f}", f"{row.get('ratio', np.nan):.2f}"]
        cells += [f"{row['processor']:.2f}"]
        cells += [f"{row[k]:.1e}" if k in row else "" for k in ("error", "residual")]
        cells += [f"{row['correlation']:.4f}" if "correlation" in row else ""]
        cells += [f"{row['peak_mb']:.0f}", f"{row['beyond_mb']:.0f}"]
        mark = "" if row["exact"] else " (approximate)"
        print(f"| {row['label']}{mark} | {' | '.join(cells)} |")
    print(flush=True)


def parsed():
    peers = list(dict.fromkeys(c.peer for c in CONTENDERS))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", type=pathlib.Path, help="what peers/install.sh made")
    work = pathlib.Path(tempfile.gettempdir()) / "keras_influence_peers"
    parser.add_argument("--work", type=pathlib.Path, default=work, help="for problems and results")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS))
    parser.add_argument("--peers", nargs="+", default=peers, choices=peers)
    parser.add_argument("--exact", action="store_true", help="leave the approximations out")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="two small problems, one round")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds kept in --work")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one process")
    parser.add_argument("--json", type=pathlib.Path, help="also write the table here")
    options = parser.parse_args()
    options.problems = options.problems or list(QUICK if options.quick else PROBLEMS)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main(parsed())
