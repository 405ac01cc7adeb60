"""Wrong labels found by self-influence, by loss and at random (Koh & Liang 2017, section 5.4).

10 % of the training labels are given another class (seed 0), and the model is trained on them:
softmax regression with L2 to its minimum; an MLP by Adam for a few epochs, as people do. Printed
is the fraction of the wrong labels among the first 10 % and 20 % in the order of each ranking.

    python benchmarks/mislabelled.py [--n 1000] [--plot FILE]
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from problems import environment, fashion_mnist
from sklearn.datasets import load_digits

from keras_influence import CG
from keras_influence.evaluation import mislabel_curve

layers = keras.layers
FRACTION = 0.1


def digits():
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32)[..., None], bunch.target.astype(np.int64)


def softmax(shape):
    return _classifier(shape)


def mlp(shape):
    return _classifier(shape, layers.Dense(32, activation="relu"))


def _classifier(shape, *body):
    l2 = keras.regularizers.L2(1e-3)
    head = layers.Dense(10, activation="softmax", kernel_regularizer=l2)
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), *body, head])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    return model


def fit(model, data):
    model.fit(**data, epochs=20, batch_size=64, verbose=0)


# name -> (model, training, options of self_influence)
STUDIES = {
    "softmax regression, minimum": (softmax, None, {"damping": 1e-3}),
    "softmax regression, damping 0.1": (softmax, None, {"damping": 0.1}),
    "MLP 32, 20 epochs": (mlp, fit, {"curvature": "gauss_newton", "damping": 0.01}),
    "MLP 32, damping 0.1": (mlp, fit, {"curvature": "gauss_newton", "damping": 0.1}),
}


def main(n, plot):
    print(f"{FRACTION:.0%} of the labels wrong, seed 0. {environment()}\n")
    print("| data | model | ranking | found in 10 % | in 20 % | area (best) | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    x, y, name = fashion_mnist(n)
    for label, train in {"digits, n = 1797": digits(), f"{name}, n = {n}": (x, y)}.items():
        for study, (build, training, options) in STUDIES.items():
            keras.utils.set_random_seed(0)
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                curve = mislabel_curve(
                    build(train[0].shape[1:]),
                    train,
                    fraction=FRACTION,
                    fit=training,
                    tol=1e-2,
                    method=CG(tol=1e-2),
                    verbose=0,
                    **options,
                )
            seconds = time.perf_counter() - start
            first, second = curve.found_after(0.1), curve.found_after(0.2)
            for ranking, area in curve.area.items():
                print(
                    f"| {label} | {study} | {ranking} | {first[ranking]:.3f} | "
                    f"{second[ranking]:.3f} | {area:.3f} ({curve.best_area:.3f}) | {seconds:.0f} |",
                    flush=True,
                )
            if plot and build is mlp:
                curve.plot().savefig(plot, dpi=110)
                plot = None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--plot", help="write the curve of the first MLP to this file")
    options = parser.parse_args()
    main(options.n, options.plot)
