"""Clean a table and a set of images by self-influence, retrain, and see what it was worth.

Some training labels are moved to another class, so that the truth is known. The examples
with the largest self-influence are dropped without a look, or looked at and their labels put
right, and the model is trained anew. Last, the same on images whose labels are as published:
which ones look odd?

    python examples/cleaning.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from keras_influence import InfluenceModel

layers = keras.layers


def table(seed):
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
    scale = StandardScaler().fit(x)
    return (scale.transform(x).astype("float32"), y), (
        scale.transform(x_test).astype("float32"), y_test)  # fmt: skip


def logistic(x, y, seed):
    inputs = keras.Input(x.shape[1:])
    l2 = keras.regularizers.L2(1e-3)
    model = InfluenceModel(inputs, layers.Dense(2, "softmax", kernel_regularizer=l2)(inputs))
    model.compile(loss="sparse_categorical_crossentropy")
    common.Minimiser(model, x, y).run(tol=1e-5)
    return model


def conv_net(x, y, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(x.shape[1:])
    hidden = layers.Conv2D(16, 3, strides=2, activation="relu")(inputs)
    hidden = layers.Conv2D(32, 3, strides=2, activation="relu")(hidden)
    hidden = layers.Dense(32, activation="relu")(layers.Flatten()(hidden))
    model = InfluenceModel(inputs, layers.Dense(10, "softmax")(hidden))
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=10, batch_size=64, verbose=0)
    return model


def suspicion(model, train):
    """Self-influence by the last layer's weights: few enough to factorise."""
    return model.self_influence(
        train, variables=model.layers[-1], method="direct", damping=1e-3, curvature="gauss_newton"
    )


def accuracy(model, test):
    return float(np.mean(model.predict(test[0], verbose=0).argmax(1) == test[1]))


def clean(build, train, test, part, seed):
    """Test accuracies with wrong labels, without the most suspicious, with these put right."""
    (x, y), rng = train, np.random.default_rng(seed)
    n, classes = len(y), y.max() + 1
    wrong, noisy = rng.choice(n, int(part * n), replace=False), y.copy()
    noisy[wrong] = (y[wrong] + rng.integers(1, classes, len(wrong))) % classes
    model = build(x, noisy, seed)
    ranked = np.argsort(-suspicion(model, (x, noisy)))
    suspects, kept = ranked[: len(wrong)], ranked[len(wrong) :]
    mended = noisy.copy()
    mended[suspects] = y[suspects]
    return {
        "wrong labels in": accuracy(model, test),
        "suspects dropped": accuracy(build(x[kept], noisy[kept], seed), test),
        "suspects mended": accuracy(build(x, mended, seed), test),
        "true labels": accuracy(build(x, y, seed), test),
        "found": float(np.isin(suspects, wrong).mean()),
    }


def main(output, quick=False):
    n, seeds = (400, 1) if quick else (2000, 2)
    images, test_images = (
        common.fashion_mnist(n),
        common.fashion_mnist(200 if quick else 2000, split="test"),
    )
    sets = {
        "breast cancer (table), 20 % wrong": lambda s: clean(logistic, *table(s), 0.2, s),
        "Fashion-MNIST (images), 20 % wrong": lambda s: clean(
            conv_net, images, test_images, 0.2, s
        ),
    }
    results = {}
    for name, experiment in sets.items():
        runs = [experiment(seed) for seed in range(seeds)]
        results[name] = {key: [r[key] for r in runs] for key in runs[0]}
        means = {key: np.mean(v) for key, v in results[name].items()}
        print(f"{name}: " + ", ".join(f"{k} {v:.1%}" for k, v in means.items()))
    model = conv_net(*images, 0)
    odd = np.argsort(-suspicion(model, images))[:10]
    guesses = model.predict(images[0][odd], verbose=0).argmax(1)
    print("labels as published that look odd: " + ", ".join(
        f"{j} ({common.CLOTHES[images[1][j]]}, taken for {common.CLOTHES[g]})"
        for j, g in zip(odd, guesses)))  # fmt: skip
    draw(results, images, odd, output)
    return {name: {k: np.mean(v) for k, v in r.items()} for name, r in results.items()}


def draw(results, images, odd, output):
    figure = common.canvas(1, width=10, height=4)[0]
    figure.clear()
    grid = figure.add_gridspec(2, 9)
    colours = (common.RED, common.ORANGE, common.BLUE, "black")
    for i, (name, table) in enumerate(results.items()):
        axis = figure.add_subplot(grid[:, 2 * i : 2 * i + 2])
        keys = list(table)[:4]
        for place, (key, colour) in enumerate(zip(keys, colours)):
            values = 100 * np.array(table[key])
            axis.plot([place] * len(values), values, "o", color=colour, alpha=0.35, markersize=4)
            axis.plot(place, values.mean(), "_", color=colour, markersize=24, markeredgewidth=3)
            axis.annotate(f"{values.mean():.1f}", (place, values.mean()), (0, 5),
                          textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        axis.set_xticks(range(4), keys, rotation=30, ha="right", fontsize=9)
        axis.set(title=name.replace(", ", "\n"), ylabel="test accuracy (%)", xlim=(-0.6, 3.6))
    for i, j in enumerate(odd):
        axis = figure.add_subplot(grid[i // 5, 4 + i % 5])
        common.show(axis, images[0][j], f"{j}: “{common.CLOTHES[images[1][j]]}”")
    figure.suptitle("Looking at the most suspicious fifth wins back most of what wrong labels cost; "
                    "right: published labels that look odd", fontsize=11.5)  # fmt: skip
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
