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
import csv
import itertools
import os
import platform
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_influence import ConvergenceWarning, DivergenceError, LiSSA
from keras_influence.operators import Damped, GaussNewton, Hessian
from keras_influence.operators.base import LinearOperator
from keras_influence.session import Session

N, TESTS, L2, DAMPING = 500, 4, 1 / 64, 0.01
SIZES = (1, 2, 4, 8, 16, 32)


# ---- the two models, each with an exact answer


class System:
    """A trained model, the gradients v of a few test losses, and (C + λI)⁻¹ v exactly."""

    def __init__(self, name, model, train, test, curvature):
        self.name, self.model = name, model  # The session holds the model only weakly.
        self.session = Session(model, train, damping=0.0, curvature="gauss_newton")
        self.columns = self.session.example_gradients(self.session.read(test, "test")).T
        self._curvature = curvature(self.session.objective, self.session.train)
        self.dense = self._curvature.to_dense()
        self.largest = np.linalg.eigvalsh(self.dense)[-1]

    def operator(self, damping):
        return Damped(self._curvature, damping)

    def exact(self, damping):
        return np.linalg.solve(self.dense + damping * np.eye(len(self.dense)), self.columns)

    def minibatch_eigenvalue(self, size, count):
        """The largest eigenvalue of `count` minibatch curvatures, in units of the full one."""
        samples = self._curvature.samples(size, seed=1)
        tops = [np.linalg.eigvalsh(next(samples).to_dense())[-1] for _ in range(count)]
        return max(tops) / self.largest


class Independent(LinearOperator):
    """Minibatches drawn anew at each step, where the library goes through the data in epochs."""

    def __init__(self, operator):
        self.size, self.dtype, self.damping = operator.size, operator.dtype, operator.damping
        self._operator, self.matmat = operator, operator.matmat

    def samples(self, batch_size, seed):
        for step in itertools.count():
            yield next(self._operator.samples(batch_size, seed + step))


def digits():
    """Images averaged to 4 x 4, so that dense solutions and refits are cheap."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[: N + TESTS]
    images = data.images[order].reshape(-1, 4, 2, 4, 2).mean((2, 4)) / 16
    x, y = images[..., None], data.target[order]
    return (x[:N], y[:N]), (x[N:], y[N:])


def softmax_regression(train, test):
    """At its minimum, found by Newton's method; convex, so that retraining has one outcome."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, "softmax", kernel_regularizer=keras.regularizers.L2(L2)),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    system = None
    for _ in range(8):
        system = System("softmax", model, train, test, Hessian)
        theta = np.concatenate([w.ravel() for w in model.get_weights()])
        # The same shift of all biases changes nothing: H is singular.
        step = np.linalg.pinv(system.dense, hermitian=True) @ _gradient(theta, *train)
        kernel, bias = np.split(theta - step, [160])
        model.set_weights([kernel.reshape(16, 10), bias])
    return System("softmax", model, train, test, Hessian)


def conv_net(train, test):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(*train, epochs=20, verbose=0)
    return System("conv", model, train, test, GaussNewton)


MODELS = {"softmax": softmax_regression, "conv": conv_net}


# ---- actual retraining of softmax regression, in closed forms


def _losses(theta, x, y):
    logits = _design(x) @ theta.reshape(17, 10)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]


def _gradient(theta, x, y, without=None):
    """Of Σᵢ wᵢ ℓᵢ / n + L2 ‖kernel‖², wᵢ = 0 for the example left out."""
    design, w = _design(x), np.ones(len(y))
    if without is not None:
        w[without] = 0
    p = np.exp(design @ theta.reshape(17, 10))
    p = p / p.sum(1, keepdims=True) - np.eye(10)[y]
    penalty = np.r_[2 * L2 * theta[:160], np.zeros(10)]
    return (design.T @ (w[:, None] * p)).ravel() / len(y) + penalty


def _design(x):
    return np.hstack([x.reshape(len(x), -1), np.ones((len(x), 1))])


def leave_one_out(system, train, test, removals):
    """Actual changes of the test losses, (tests, removals), by refits to the minimum."""
    theta = np.concatenate([w.ravel() for w in system.model.get_weights()])
    inverse = np.linalg.pinv(system.dense, hermitian=True)
    changes = []
    for j in removals:
        refit = theta
        for _ in range(30):  # Newton's method with the Hessian of all data: linear, and enough.
            refit = refit - inverse @ _gradient(refit, *train, without=j)
        changes.append(_losses(refit, *test) - _losses(theta, *test))
    return np.array(changes).T


class Truth:
    """Pearson correlation of scores with actual changes."""

    def __init__(self, system, train, test, removals):
        self.rows = removals
        self.system = system
        self.changes = leave_one_out(system, train, test, removals).ravel()

    def __call__(self, x):
        scores = self.system.session.scores(x.T)[:, self.rows].ravel()
        return np.corrcoef(scores, self.changes)[0, 1]


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
        try:
            found.append(solver.solve(operator, system.columns).x)
        except DivergenceError:
            pass
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


def study(system, truth, seeds, short):
    """Every knob by itself around one setting, as a list of rows."""
    rows = []

    def run(name, **knobs):
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
        run("scale at equal bias", scale=1.0 * factor, depth=factor * 100 // short)
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
        solution = LiSSA().solve(system.operator(damping), system.columns)
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
        mine = [row for row in rows if row["model"] == system.name]
        parts = {study: [r for r in mine if r["study"] == study] for study in VARIED}
        found = {s: exponent(parts[s], knob) for s, knob in VARIED.items()}
        print(
            f"{system.name}: the variance goes as m^{found['batch size, independent']:.2f} "
            f"(minibatches in epochs: m^{found['batch size']:.2f}), "
            f"r^{found['repeats']:.2f}, and at equal bias (T in proportion to σ) "
            f"as σ^{found['scale at equal bias']:.2f}"
        )
        tops = {m: system.minibatch_eigenvalue(m, 20) for m in (1, 8, 32)}
        half = ", ".join(f"m = {m}: {top / 2:.2f}" for m, top in tops.items())
        print(f"  half the largest eigenvalue of 20 minibatches, over λmax: {half}")


VARIED = {
    "batch size": "batch_size",
    "batch size, independent": "batch_size",
    "repeats": "repeats",
    "scale at equal bias": "scale",
}


def draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    _panel(axes[0, 0], rows, "scale", "scale", ("bias", "noise"), "σ / λmax")
    axes[0, 0].set_title("Scale, at T fixed: too small diverges, too large is biased")
    _panel(axes[0, 1], rows, "batch size, independent", "batch_size", ("noise",), "batch size m")
    m = np.array(SIZES)
    first = next(
        r["noise"] for r in rows if r["study"] == "batch size, independent" and r["noise"] > 0
    )
    axes[0, 1].plot(m, first * m**-0.5, "k--", lw=1, label="variance ∝ 1/m")
    axes[0, 1].plot(m, first * m**-1.0, "k:", lw=1, label="variance ∝ 1/m²")
    axes[0, 1].set_title("Batch size: the variance falls as 1/m")
    _panel(axes[1, 0], rows, "depth", "depth", ("bias", "noise"), "depth T")
    axes[1, 0].set_title("Depth: the bias falls, the noise stays")
    _panel(axes[1, 1], rows, "scale at equal bias", "scale", ("bias", "noise"), "σ / λmax, T ∝ σ")
    axes[1, 1].set_title("Scale, at equal bias: less noise for as many more steps")
    for ax in axes.flat:
        ax.set_ylabel("part of the relative error")
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


def main(output, quick, models=tuple(MODELS)):
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
        rows += study(system, truth, seeds=2 if quick else 4, short=8 if quick else 1)
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
    parser.add_argument("--draw", nargs="+", metavar="CSV", help="only draw earlier runs again")
    options = parser.parse_args()
    if options.draw:
        redraw(options.output, options.draw)
    else:
        main(options.output, options.quick, options.models)
