"""What do LiSSA's knobs do: scale, damping, batch size, depth and repeats?

Runs the plain recurrence h ← v + h - A_B h / σ, x = h_T / σ, on two models of scikit-learn's
digits, softmax regression (its Hessian) and a small convolutional net (Gauss-Newton), with
one knob varied at a time and over several seeds. Measures the error against the dense
float64 solution, split into bias and noise, divergence, seconds, and, for softmax
regression, how well the scores agree with actual retraining without single examples.

    python examples/lissa_hyperparameters.py [--quick] [--output lissa]

writes `<output>.csv` and `<output>-knobs.png` and prints the tables of docs/lissa.md.
"""

import argparse
import contextlib
import csv
import os
import platform
import time
import warnings

import quiet  # noqa: F401

# isort: split
import keras
import numpy as np
import tensorflow as tf
from lissa_models import MODELS, Independent, N, Truth, digits

from keras_influence import ConvergenceWarning, DivergenceError, LiSSA

DAMPING = 0.01
SIZES = (1, 2, 4, 8, 16, 32)


# ---- one setting, several seeds


def measure(
    system, truth, seeds, study, scale, depth, batch_size, repeats=1, damping=DAMPING, wrap=None
):
    """Run the plain recurrence; `scale` is in units of the largest eigenvalue of the full data.

    Returns:
        A dict: the setting, and errors relative to ‖x‖: `error` of one run, its `bias` and
        its `noise` (standard deviation), the share that `diverged`, `seconds` of one run,
        and `pearson` with retraining where there is a truth.
    """
    exact, sigma = system.exact(damping), scale * (system.largest + damping)
    operator = (wrap or (lambda o: o))(system.operator(damping))
    found, start = [], time.perf_counter()
    for seed in range(seeds):
        solver = LiSSA(sigma, depth, repeats, batch_size, seed=100_000 * seed)
        with contextlib.suppress(DivergenceError):
            found.append(solver.solve(operator, system.rows).x)
    row = {
        "study": study,
        "model": system.name,
        "scale": scale,
        "depth": depth,
        "batch_size": batch_size,
        "repeats": repeats,
        "damping": damping,
        "extra_ridge": sigma / depth,
        "diverged": 1 - len(found) / seeds,
        "seconds": (time.perf_counter() - start) / seeds,
        **dict.fromkeys(("error", "bias", "noise", "pearson"), np.nan),
    }
    if len(found) == seeds:
        x, size = np.array(found), np.linalg.norm(exact)
        variance = (x.var(axis=0, ddof=1)).sum() / size**2
        off = np.linalg.norm(x.mean(0) - exact) / size
        row["error"] = np.mean([np.linalg.norm(one - exact) / size for one in x])
        row["noise"] = np.sqrt(variance)
        # The mean of a few runs is itself noisy: take that part off.
        row["bias"] = np.sqrt(max(off**2 - variance / seeds, 0))
        if truth:
            row["pearson"] = np.mean([truth(one) for one in x])
    return row


def study(system, truth, seeds, short, wanted=()):
    """Every knob by itself around one setting, as a list of rows; or only the `wanted` ones."""
    rows = []

    def run(name, **knobs):
        if wanted and name not in wanted:
            return
        setting = {"scale": 1.0, "depth": 200 // short, "batch_size": 32, **knobs}
        rows.append(measure(system, truth, seeds, name, **setting))

    for scale in (0.25, 0.4, 0.6, 1, 2, 4, 8, 16):
        run("scale", scale=scale)
    for size in SIZES:
        run("batch size", batch_size=size, scale=8.0)
    for size in SIZES:
        run("batch size, independent", batch_size=size, scale=8.0, wrap=Independent)
    for depth in (25, 100, 400, 1000):
        run("depth", depth=depth // short)
    for repeats in (1, 2, 4):
        run("repeats", repeats=repeats, depth=100 // short)
    # The same bias at each scale: T in proportion to σ.
    for factor in (1, 2, 4):
        at_equal_bias = {"scale": 1.0 * factor, "depth": factor * 100 // short}
        run("scale at equal bias", **at_equal_bias)
        run("scale at equal bias, independent", **at_equal_bias, wrap=Independent)
    for damping in (1e-3, 1e-2, 1e-1):
        run("damping", damping=damping)
    return rows


def exponent(rows, knob):
    """Slope of log variance over the log of a knob."""
    pairs = [(r[knob], r["noise"] ** 2) for r in rows if r["noise"] > 0]
    return np.polyfit(*np.log(np.array(pairs).T), 1)[0]


def automatic(system, truth):
    """The self-tuning solver with defaults, at three dampings."""
    rows = []
    for damping in (1e-3, 1e-2, 1e-1):
        start, exact = time.perf_counter(), system.exact(damping)
        solution = LiSSA().solve(system.operator(damping), system.rows)
        rows.append(
            {
                "model": system.name,
                "damping": damping,
                "error": np.linalg.norm(solution.x - exact) / np.linalg.norm(exact),
                "passes": solution.passes,
                "seconds": time.perf_counter() - start,
                "pearson": truth(solution.x) if truth else np.nan,
                "pearson of the exact solution": (truth(exact) if truth else np.nan),
            }
        )
    return rows


# ---- what is written


COLUMNS = {
    "scale": "σ / λmax",
    "depth": "T",
    "batch_size": "m",
    "repeats": "r",
    "damping": "λ",
    "extra_ridge": "σ / T",
    "error": "error",
    "bias": "bias",
    "noise": "noise",
    "diverged": "diverged",
    "seconds": "seconds",
    "pearson": "Pearson",
}


def show(title, rows, columns):
    """A Markdown table."""
    print(f"\n{title}\n\n| model | " + " | ".join(columns.values()) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = ["–" if np.isnan(row[c]) else f"{row[c]:.3g}" for c in columns]
        print(f"| {row['model']} | " + " | ".join(cells) + " |", flush=True)


def report(rows, systems):
    for name in dict.fromkeys(row["study"] for row in rows):
        chosen = [row for row in rows if row["study"] == name]
        varied = [c for c in ("scale", "depth", "batch_size", "repeats", "damping")
                  if len({row[c] for row in chosen}) > 1]  # fmt: skip
        knobs = [*varied, "extra_ridge"] if "depth" in varied or "scale" in varied else varied
        kept = {c: COLUMNS[c] for c in COLUMNS if c in knobs}
        kept |= {c: COLUMNS[c] for c in list(COLUMNS)[6:]}
        show(f"Varied: {name}.", chosen, kept)
    print()
    for system in systems:
        for name, (knob, letter) in VARIED.items():
            chosen = [r for r in rows if r["model"] == system.name and r["study"] == name]
            if chosen:
                power = exponent(chosen, knob)
                print(f"{system.name}, {name}: the variance goes as {letter}^{power:.2f}")
        tops = {m: system.minibatch_eigenvalue(m, 20) for m in (1, 8, 32)}
        half = ", ".join(f"m = {m}: {top / 2:.2f}" for m, top in tops.items())
        print(f"  half the largest eigenvalue of 20 minibatches, over λmax: {half}")


VARIED = {
    "batch size": ("batch_size", "m"),
    "batch size, independent": ("batch_size", "m"),
    "repeats": ("repeats", "r"),
    "scale at equal bias": ("scale", "σ"),
    "scale at equal bias, independent": ("scale", "σ"),
}


def draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    _panel(axes[0, 0], rows, "scale", "scale", ("bias", "noise"), "σ / λmax")
    axes[0, 0].set_title("Scale, T fixed (dotted: diverged)")
    _panel(axes[0, 1], rows, "batch size, independent", "batch_size", ("noise",), "batch size m")
    m = np.array(SIZES)
    drawn = [r["noise"] for r in rows if r["study"] == "batch size, independent"]
    if drawn:
        axes[0, 1].plot(m, drawn[0] * m**-0.5, "k--", lw=1, label="variance ∝ 1/m")
        axes[0, 1].plot(m, drawn[0] * m**-1.0, "k:", lw=1, label="variance ∝ 1/m²")
    axes[0, 1].set_title("Batch size, independent minibatches")
    _panel(axes[1, 0], rows, "depth", "depth", ("bias", "noise"), "depth T")
    axes[1, 0].set_title("Depth")
    _panel(
        axes[1, 1],
        rows,
        "scale at equal bias, independent",
        "scale",
        ("bias", "noise"),
        "σ / λmax, T ∝ σ",
    )
    axes[1, 1].set_title("Scale, T in proportion")
    for ax in axes.flat:
        ax.set_ylabel("part of the relative error")
        if ax.lines:
            ax.legend(fontsize=8)
    figure.savefig(path, dpi=85)


def _panel(ax, rows, study, knob, parts, label):
    for name, colour in (("softmax", "tab:blue"), ("conv", "tab:orange")):
        mine = [row for row in rows if row["study"] == study and row["model"] == name]
        for part, style in zip(parts, ("-o", "--s") if len(parts) > 1 else ("--s",)):
            good = [(row[knob], row[part]) for row in mine if row[part] > 0]
            if good:
                ax.loglog(*zip(*good), style, color=colour, ms=4, label=f"{name}, {part}")
        for row in mine:
            if row["diverged"]:
                ax.axvline(row[knob], color=colour, ls=":", lw=2)
    ax.set_xlabel(label)


def main(output, quick, models=tuple(MODELS), studies=()):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    warnings.simplefilter("ignore", ConvergenceWarning)
    start, rows, defaults, systems = time.perf_counter(), [], [], []
    train, test = digits()
    for name in models:
        keras.utils.set_random_seed(0)
        system = MODELS[name](train, test)
        systems.append(system)
        print(f"{name}: {len(system.dense)} parameters, λmax = {system.largest:.3g}", flush=True)
        removals = np.random.default_rng(1).choice(N, 20 if quick else 100, replace=False)
        truth = Truth(system, train, test, removals) if name == "softmax" else None
        rows += study(system, truth, 2 if quick else 4, 8 if quick else 1, studies)
        defaults += automatic(system, truth)
    report(rows, systems)
    names = ("damping", "error", "passes", "seconds", "pearson", "pearson of the exact solution")
    show("Self-tuning, with defaults.", defaults, {name: name for name in names})
    with open(f"{output}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, f"{output}-knobs.png")
    print(
        f"\n{time.perf_counter() - start:.0f} s in all; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, "
        f"Keras {keras.__version__}, NumPy {np.__version__}"
    )
    return rows, defaults


def redraw(output, parts):
    """The picture of earlier runs, from their CSV files."""
    rows = []
    for part in parts:
        with open(part, newline="") as file:
            rows += [
                {k: v if k in ("study", "model") else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
    draw(rows, f"{output}-knobs.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="lissa")
    parser.add_argument("--quick", action="store_true", help="short runs and few seeds")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--studies", nargs="+", default=[], help="only these; default all")
    parser.add_argument("--draw", nargs="+", metavar="CSV", help="only draw earlier runs again")
    options = parser.parse_args()
    if options.draw:
        redraw(options.output, options.draw)
    else:
        main(options.output, options.quick, options.models, options.studies)
