"""Is self-tuning LiSSA, with defaults, within 1 % of the exact answer, whatever the model?

For each model of a zoo, trained for a few epochs in float32, solves (G + λI) x = v, G the
Gauss-Newton matrix, for three test gradients by CG and by LiSSA, both with defaults.
CG's answer is compared with a dense float64 solve, LiSSA's with CG's.

    python benchmarks/lissa_zoo.py [--models ridge ...] [--damping 0.1 0.01 0.001] [--n 256 1024]
"""

import argparse
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_influence import CG, LiSSA
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped

layers = keras.layers


# ---- data: n examples and three more to explain


def _digits(n, rng):
    digits = load_digits()
    rows = rng.permutation(len(digits.target))[:n]
    return (digits.images[rows, :, :, None] / 16).astype("float32"), digits.target[rows]


def _table(n, rng):
    """Eight features on scales from 1 to 1/30, and a noisy linear signal."""
    x = rng.normal(size=(n, 8)) * np.geomspace(1, 1 / 30, 8)
    return x.astype("float32"), x @ np.geomspace(1, 30, 8) + 0.3 * rng.normal(size=n)


def _reals(n, rng):
    x, signal = _table(n, rng)
    return x, np.stack([signal, signal**2 / 8], axis=1).astype("float32")


def _counts(n, rng):
    x, signal = _table(n, rng)
    return x, rng.poisson(np.exp(signal / 4)).astype("float32")


def _binary(n, rng):
    x, signal = _table(n, rng)
    return x, (signal > 1).astype("float32")


def _weighted(n, rng):
    return *_binary(n, rng), rng.uniform(0.1, 5, n).astype("float32")


def _tokens(n, rng):
    """Rare and common words, Zipf's law; the class is which of two words is more frequent."""
    words = np.minimum(rng.zipf(1.4, (n, 10)), 29)
    return words, ((words == 1).sum(1) > (words > 3).sum(1)).astype(int)


def _series(n, rng):
    kind = rng.integers(0, 3, n)
    waves = np.sin((1 + kind[:, None]) * np.linspace(0, 6, 16) + rng.uniform(0, 6, (n, 1)))
    return (waves + 0.3 * rng.normal(size=(n, 16)))[:, :, None].astype("float32"), kind


def _pairs(n, rng):
    x, signal = _table(n, rng)
    return {"a": x[:, :5], "b": x[:, 5:]}, (signal > 0).astype(int)


def _two_targets(n, rng):
    x, signal = _table(n, rng)
    return x, {"kind": (signal > 0).astype(int), "size": signal.astype("float32")}


# ---- models


def _stack(data, shape, *body, loss="sparse_categorical_crossentropy", top=("softmax", 10)):
    """Data, and a function that makes the compiled model; `body` makes the layers."""

    def make():
        model = keras.Sequential([keras.Input(shape), *(layer() for layer in body)])
        model.add(layers.Flatten())
        model.add(layers.Dense(top[1], activation=top[0]))
        model.compile(keras.optimizers.Adam(0.01), loss)
        return model

    return data, make


def _image(*body):
    return _stack(_digits, (8, 8, 1), *body)


def _dense(units, activation, **options):
    return lambda: layers.Dense(units, activation, **options)


def _conv(filters, activation="relu", **options):
    return lambda: layers.Conv2D(filters, 3, activation=activation, **options)


def _two_inputs():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    hidden = layers.Concatenate()([layers.Dense(6, "tanh")(a), layers.Dense(3)(b)])
    model = keras.Model({"a": a, "b": b}, layers.Dense(2, "softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def _two_outputs():
    inputs = keras.Input((8,))
    hidden = layers.Dense(8, "tanh")(inputs)
    kind = layers.Dense(2, "softmax", name="kind")(hidden)
    model = keras.Model(inputs, {"kind": kind, "size": layers.Dense(1, name="size")(hidden)})
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile(keras.optimizers.Adam(0.01), losses, loss_weights={"kind": 1.0, "size": 0.25})
    return model


def _residual():
    inputs = keras.Input((8, 8, 1))
    x = layers.Dense(12)(layers.Flatten()(inputs))
    for _ in range(2):
        x = layers.Add()([x, layers.Dense(12)(layers.Activation("relu")(x))])
    model = keras.Model(inputs, layers.Dense(10, "softmax")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def _transformer():
    inputs = keras.Input((10,))
    x = layers.Embedding(30, 6)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(8, "gelu")(x))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(pooled))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


_l2 = keras.regularizers.L2(1e-3)
_binary_top = {"loss": "binary_crossentropy", "top": ("sigmoid", 1)}
_real_top = {"top": ("linear", 2)}

ZOO = {
    "ridge": _stack(_reals, (8,), loss="mse", **_real_top),
    "Poisson regression": _stack(_counts, (8,), loss="poisson", top=("exponential", 1)),
    "logistic": _stack(_binary, (8,), **_binary_top),
    "weighted logistic": _stack(_weighted, (8,), **_binary_top),
    "softmax": _image(layers.Flatten),
    "MLP tanh": _image(layers.Flatten, _dense(8, "tanh")),
    "MLP relu": _image(layers.Flatten, _dense(12, "relu")),
    "MLP wide": _image(layers.Flatten, _dense(32, "relu")),
    "MLP deep gelu": _image(layers.Flatten, *[_dense(10, "gelu")] * 4),
    "MLP with L2": _image(layers.Flatten, _dense(8, "relu", kernel_regularizer=_l2)),
    "MLP with dropout": _image(layers.Flatten, _dense(12, "relu"), lambda: layers.Dropout(0.3)),
    "MLP regression": _stack(_reals, (8,), _dense(12, "silu"), loss="mse", **_real_top),
    "MLP Huber": _stack(_reals, (8,), _dense(12, "tanh"), loss="huber", **_real_top),
    "Conv2D": _image(_conv(4, strides=2)),
    "Conv2D and pooling": _image(_conv(6), layers.MaxPooling2D),
    "Conv2D twice": _image(_conv(4), _conv(6), layers.MaxPooling2D),
    "depthwise": _image(lambda: layers.DepthwiseConv2D(3, depth_multiplier=3, activation="gelu")),
    "separable, global pooling": _image(
        lambda: layers.SeparableConv2D(12, 3, activation="relu"), layers.GlobalAveragePooling2D
    ),
    "Conv1D": _stack(
        _series, (16, 1), lambda: layers.Conv1D(6, 5, activation="relu"), top=("softmax", 3)
    ),
    "BatchNormalization": _image(layers.Flatten, _dense(10, "relu"), layers.BatchNormalization),
    "Conv2D BatchNormalization": _image(_conv(4), layers.BatchNormalization, layers.MaxPooling2D),
    "LayerNormalization": _image(layers.Flatten, _dense(10, "tanh"), layers.LayerNormalization),
    "GroupNormalization": _image(_conv(4), lambda: layers.GroupNormalization(2)),
    "UnitNormalization": _image(layers.Flatten, _dense(10, "relu"), layers.UnitNormalization),
    "Embedding": _stack(_tokens, (10,), lambda: layers.Embedding(30, 4), top=("softmax", 2)),
    "Embedding, mean": _stack(
        _tokens,
        (10,),
        lambda: layers.Embedding(30, 8),
        layers.GlobalAveragePooling1D,
        top=("softmax", 2),
    ),
    "several inputs": (_pairs, _two_inputs),
    "several outputs": (_two_targets, _two_outputs),
    "residual": (_digits, _residual),
    "transformer": (_tokens, _transformer),
    "GRU": _stack(_series, (16, 1), lambda: layers.GRU(5), top=("softmax", 3)),
}


def problem(name, n, epochs=10, seed=0):
    """A trained model of the zoo as a `Problem` and (3, p) gradients of unseen examples."""
    keras.utils.set_random_seed(seed)
    data, make = ZOO[name]
    whole = data(n + 3, np.random.default_rng(seed))
    train = keras.tree.map_structure(lambda a: a[:n], whole)
    test = keras.tree.map_structure(lambda a: a[n:], whole)
    model = make()
    x, y, *weight = train
    model.fit(x, y, epochs=epochs, verbose=0, sample_weight=weight[0] if weight else None)
    asked = Problem(model, train)
    return asked, asked.example_gradients(asked.read(test, "test"))


def compare(asked, rows, damping, dense):
    """One row of the table, as a dict.

    Args:
        dense: the (p, p) matrix without damping, or None for no check of CG.
    """
    operator = Damped(asked.curvature("gauss_newton"), damping)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cg, lissa = (solver.solve(operator, rows) for solver in (CG(), LiSSA()))
    exact = np.linalg.solve(dense + damping * np.eye(len(dense)), rows.T.astype(np.float64)).T
    return {
        "p": operator.size,
        "condition": np.linalg.norm(dense, 2) / damping + 1,
        "cg_passes": cg.passes,
        "cg_error": _error(cg.x, exact),
        "lissa_passes": lissa.passes,
        "lissa_residual": lissa.residual.max(),
        "lissa_error": _error(lissa.x, cg.x),
        "scale": lissa.details["scale"],
    }


def _error(x, exact):
    return (np.linalg.norm(x - exact, axis=1) / np.linalg.norm(exact, axis=1)).max()


def main(models, sizes, dampings):
    print(
        "| model | n | p | λ | condition | CG passes | CG's error | LiSSA passes | LiSSA's error |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for name in models:
        for n in sizes:
            asked, gradients = problem(name, n)
            operator = asked.curvature("gauss_newton")
            dense = operator.to_dense()
            for damping in dampings:
                row = compare(asked, gradients, damping, dense)
                rows.append(row)
                print(
                    f"| {name} | {n} | {row['p']} | {damping:g} | {row['condition']:.0f} | "
                    f"{row['cg_passes']:.0f} | {row['cg_error']:.1e} | "
                    f"{row['lissa_passes']:.0f} | {row['lissa_error']:.1e} |",
                    flush=True,
                )
            keras.backend.clear_session()
    within = [row["lissa_error"] <= 0.01 for row in rows if row["cg_passes"] <= 200]
    finite = all(np.isfinite(row["lissa_error"]) for row in rows)
    print(
        f"\n{len(models)} models, {len(rows)} systems, no NaN: {finite}. Where CG needs at most "
        f"200 passes: {sum(within)} of {len(within)} within 1 % of CG."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(ZOO), choices=list(ZOO))
    parser.add_argument("--n", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1, 0.01, 0.001])
    options = parser.parse_args()
    main(options.models, options.n, options.damping)
