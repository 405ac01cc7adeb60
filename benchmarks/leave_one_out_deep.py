"""What makes leave-one-out predictions of a conv net true: damping, convergence, curvature.

A small conv net on 300 of scikit-learn's digits, with L2. A float64 copy goes to a minimum by
L-BFGS; the examples with the largest scores, and as many at random, are left out one by one, and
training goes on to the minimum near by (Koh & Liang 2017, section 4.2, retrain likewise from the
weights that they have, for 30,000 more steps, and report a correlation of 0.86). Scores of many
settings are then held against the same retrainings.

    python benchmarks/leave_one_out_deep.py [--activations tanh relu] [--removals 32]
"""

import argparse
import dataclasses
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from problems import environment
from sklearn.datasets import load_digits

import keras_influence as ki
from keras_influence.evaluation import leave_one_out
from keras_influence.evaluation.minimiser import Minimiser
from keras_influence.questions.settings import Settings

layers = keras.layers
N, N_TEST, EPOCHS = 300, 4, 20
DAMPINGS = (0.0, 1e-3, 1e-2, 1e-1)


def conv(activation, l2):
    options = {"activation": activation, "kernel_regularizer": keras.regularizers.L2(l2)}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, strides=2, padding="same", **options),
            layers.Conv2D(8, 3, strides=2, padding="same", **options),
            layers.Flatten(),
            layers.Dense(10, kernel_regularizer=keras.regularizers.L2(l2)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    return model


def main(activations, regularisers, removals):
    digits = load_digits()
    x, y = (digits.images / 16)[..., None].astype(np.float32), digits.target
    train = x[:N], y[:N]
    print(f"digits, n = {N}, {removals} removals, {N_TEST} test examples. {environment()}\n")
    for activation in activations:
        for l2 in regularisers:
            keras.utils.set_random_seed(0)
            model = conv(activation, l2)
            model.fit(*train, epochs=EPOCHS, batch_size=32, verbose=0)
            study(f"{activation}, L2({l2:g})", model, train, (x[N:], y[N:]), removals)


def study(name, model, train, unseen, removals):
    start = time.perf_counter()
    minimiser = Minimiser(model, train, Settings(), max_iter=20_000)
    with minimiser.precision():
        base = minimiser.base()
        losses = minimiser.outputs(minimiser.read(unseen))
        # The hardest test examples, where influence is largest.
        worst = np.argsort(-losses)[:N_TEST]
        test = unseen[0][worst], unseen[1][worst]
        found = {}
        for curvature in ("hessian", "gauss_newton"):
            for damping in DAMPINGS:
                found[curvature, damping] = scores(minimiser.model, test, train, curvature, damping)
        guide = np.abs(found["gauss_newton", 1e-3]).max(0)
        order = np.argsort(-guide)
        half = removals // 2
        others = np.random.default_rng(0).permutation(order[half:])[: removals - half]
        indices = np.concatenate([order[:half], others])
        result = leave_one_out(
            minimiser.model, test, train, indices, scores=found["gauss_newton", 1e-3], verbose=0
        )
    print(f"**{name}**, {model.count_params()} parameters; {base.iterations} iterations to the ")
    print(f"minimum, {time.perf_counter() - start:.0f} s in all. Gradient left: ")
    print(f"{result.base_gradient:.1e} (base), {np.median(result.gradients):.1e} (median), ")
    print(f"{result.gradients.max():.1e} (largest) of a removal's.\n")
    print(
        "| weights | curvature | damping | Pearson | Spearman | slope |\n|---|---|---|---|---|---|"
    )
    for (curvature, damping), values in found.items():
        row("minimum", curvature, damping, result, values, indices)
    for damping in (1e-2, 1e-1):
        values = scores(model, test, train, "gauss_newton", damping)
        row(f"{EPOCHS} epochs of Adam", "gauss_newton", damping, result, values, indices)
    print(flush=True)


def scores(model, test, train, curvature, damping):
    """Influence by a dense solve, which takes indefinite matrices too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"method": "direct", "verbose": 0, "batch_size": N}
        return np.asarray(
            ki.influence(model, test, train, curvature=curvature, damping=damping, **options)
        )


def row(weights, curvature, damping, result, values, indices):
    r = dataclasses.replace(result, predicted=values[:, indices].astype(np.float64))
    print(
        f"| {weights} | {curvature} | {damping:g} | {r.pearson:.3f} | {r.spearman:.3f} | "
        f"{r.slope:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", nargs="+", default=["tanh", "relu"])
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--removals", type=int, default=32)
    options = parser.parse_args()
    main(options.activations, options.l2, options.removals)
