"""`find_label_issues` against cleanlab 2 on wrong labels that were planted.

10 % of the training labels get another class. Printed is the fraction of them that is among the
first 5, 10 and 20 % of each ranking, and the area under that curve; mean over seeds.

The first three rankings need the one model that was trained on all of the data. "Out of fold" are
those of `find_label_issues(predictions=)`, and cleanlab's: both are given the same predictions of
five models, each for the fifth that it has not seen. "Self-influence, loss out of fold" is the mean
of the two orders.

    python benchmarks/label_issues.py [--n 2000] [--seeds 3] [--data fashion digits]
                                      [--peers ENVIRONMENTS] [--models softmax mlp conv]

With `--peers`, cleanlab runs in ENVIRONMENTS/cleanlab, as `peers/install.sh ENVIRONMENTS cleanlab`
makes it; without it its rows are left out.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from mislabelled import digits
from problems import environment, fashion_mnist
from scipy.stats import rankdata

from keras_influence import CG, Explainer
from keras_influence.evaluation import plant_wrong_labels

layers = keras.layers
FRACTION, FOLDS = 0.1, 5
CHECKED = (0.05, 0.1, 0.2)
BODIES = {
    "softmax": lambda: [layers.Flatten()],
    "mlp": lambda: [layers.Flatten(), layers.Dense(64, activation="relu")],
    "conv": lambda: [
        layers.Conv2D(16, 3, strides=2, activation="relu"),
        layers.Conv2D(16, 3, strides=2, activation="relu"),
        layers.Flatten(),
    ],
}


def trained(body, x, y, seed, epochs):
    keras.utils.set_random_seed(seed)
    l2 = keras.regularizers.L2(1e-3)
    head = layers.Dense(10, activation="softmax", kernel_regularizer=l2)
    model = keras.Sequential([keras.Input(x.shape[1:]), *BODIES[body](), head])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=epochs, batch_size=64, verbose=0)
    return model


def out_of_fold(body, x, y, seed, epochs):
    """(n, classes): each example's prediction by a model that was trained on the other folds."""
    fold = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    found = np.empty((len(y), 10))
    for k in range(FOLDS):
        out = fold == k
        model = trained(body, x[~out], y[~out], seed, epochs)
        found[out] = model.predict(x[out], verbose=0)
    return found / found.sum(1, keepdims=True)


def rankings(body, x, y, seed, epochs, peers):
    """A dict from names to scores, largest = most suspicious."""
    model = trained(body, x, y, seed, epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = Explainer(model, (x, y), method=CG(tol=1e-2), verbose=0)
        issues = explainer.find_label_issues()
    back = np.argsort(issues.index)
    influence, loss = issues.self_influence[back], issues.loss[back]
    found = {"self-influence": influence, "loss": loss, "margin": -issues.margin[back]}
    predictions = out_of_fold(body, x, y, seed, epochs)
    issues = explainer.find_label_issues(predictions=predictions)
    outside = {name: getattr(issues, name)[np.argsort(issues.index)] for name in ("loss", "margin")}
    found |= {"loss, out of fold": outside["loss"], "margin, out of fold": -outside["margin"]}
    found["self-influence, loss out of fold"] = rankdata(influence) + rankdata(outside["loss"])
    if peers:
        cleaned = cleanlab(peers, y, predictions)
        found |= {f"cleanlab {name}": scores for name, scores in cleaned.items()}
    return found


def cleanlab(peers, labels, predictions):
    script = pathlib.Path(__file__).parent / "peers" / "run_cleanlab.py"
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "labels.npz"), pathlib.Path(folder, "result.npz")
        np.savez(source, labels=labels, predictions=predictions)
        python = pathlib.Path(peers, "cleanlab", "bin", "python")
        subprocess.run([python, script, source, target], check=True)
        with np.load(target) as found:
            return {name: found[name] for name in found.files if name != "version"}


def found_by(scores, wrong):
    """The fraction of the wrong labels found after each part of CHECKED, and the area."""
    hits = np.cumsum(wrong[np.argsort(-scores, kind="stable")]) / wrong.sum()
    return [*(hits[round(part * len(wrong)) - 1] for part in CHECKED), hits.mean()]


def main(options):
    print(f"{FRACTION:.0%} of the labels wrong, {options.seeds} seeds. {environment()}\n")
    print("| data | model | ranking | found in 5 % | in 10 % | in 20 % | area |")
    print("|---|---|---|---|---|---|---|", flush=True)
    x, y, name = fashion_mnist(options.n)
    sets = {"fashion": (f"{name}, n = {options.n}", x, y), "digits": ("digits", *digits())}
    for label, x, y in (sets[key] for key in options.data):
        for body in options.models:
            table = {}
            for seed in range(options.seeds):
                labels, wrong = plant_wrong_labels(y, FRACTION, seed=seed)
                found = rankings(body, x, labels, seed, options.epochs, options.peers)
                for ranking, scores in found.items():
                    table.setdefault(ranking, []).append(found_by(scores, wrong))
            for ranking, rows in table.items():
                numbers = " | ".join(f"{v:.3f}" for v in np.mean(rows, 0))
                print(f"| {label} | {body} | {ranking} | {numbers} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="images of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--data", nargs="+", default=["fashion", "digits"])
    parser.add_argument("--models", nargs="+", default=list(BODIES))
    parser.add_argument("--peers", help="folder with one virtual environment for each peer")
    main(parser.parse_args())
