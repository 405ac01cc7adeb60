"""Two models that agree, for different reasons. (Koh & Liang 2017, Figure 4.)

A logistic regression on radial basis functions and a small convolutional net both get a
test image right. Influence shows what each of them leans on: the first on images whose
pixels are near, the second on images of either class that show the same traits.

    python examples/two_models.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np
from scipy.stats import spearmanr
from sklearn.kernel_approximation import Nystroem

from keras_influence import InfluenceModel

layers = keras.layers
CLASSES, NAMES = (7, 9), ("sneaker", "ankle boot")


def rbf_model(train, centres):
    """Logistic regression on the kernel exp(-γ‖x - c‖²) of `centres` images, and its features."""
    flat = train[0].reshape(len(train[0]), -1)
    kernel = Nystroem(gamma=0.02, n_components=centres, random_state=0).fit(flat)
    inputs = keras.Input((centres,))
    l2 = keras.regularizers.L2(1e-4)
    model = InfluenceModel(inputs, layers.Dense(1, "sigmoid", kernel_regularizer=l2)(inputs))
    model.compile(loss="binary_crossentropy")

    def features(x):
        return kernel.transform(x.reshape(len(x), -1))

    common.Minimiser(model, features(train[0]), train[1]).run()
    return model, features


def conv_net(train, epochs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(train[0].shape[1:])
    hidden = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    hidden = layers.Conv2D(16, 3, strides=2, activation="relu")(hidden)
    outputs = layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling2D()(hidden))
    model = InfluenceModel(inputs, outputs)
    model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy")
    model.fit(*train, epochs=epochs, batch_size=32, verbose=0)
    return model, lambda x: x


def main(output, quick=False):
    n, centres, epochs = (200, 80, 8) if quick else (1000, 200, 30)
    x, y = common.fashion_mnist(n, CLASSES)
    x_test, y_test = common.fashion_mnist(500, CLASSES, "test")
    train, labels = (x, y[:, None].astype("float32")), y_test[:, None].astype("float32")
    models = {"RBF features": rbf_model(train, centres), "conv net": conv_net(train, epochs)}

    right, losses = np.ones(len(y_test), bool), 0
    for model, features in models.values():
        p = model.predict(features(x_test), verbose=0)[:, 0]
        right &= (p > 0.5) == y_test
        losses = losses - np.log(np.where(y_test == 1, p, 1 - p))
        accuracy = np.mean((p > 0.5) == y_test)
        print(f"test accuracy {accuracy:.3f}")
    # Images that both get right, though not without a doubt: their scores are not all zero.
    rows = np.argsort(-np.where(right, losses, -np.inf))[: 6 if quick else 20]

    found, summary = {}, {}
    for name, (model, features) in models.items():
        test, seen = (features(x_test[rows]), labels[rows]), (features(x), train[1])
        scores = model.influence(
            test, seen, damping=1e-3, curvature="gauss_newton", method="direct"
        )
        found[name] = scores
        distance = np.linalg.norm((x_test[rows, None] - x[None]).reshape(len(rows), n, -1), axis=2)
        near = [spearmanr(-d, abs(v)).statistic for d, v in zip(distance, scores.values)]
        top = scores.top(20).indices
        other = np.mean(y[top] != y_test[rows, None])
        rank = [np.mean(np.argsort(np.argsort(d))[t]) / n for d, t in zip(distance, top)]
        summary[name] = float(np.mean(near)), float(other), float(np.mean(rank))
        print(f"{name:13s} nearness against |influence|: Spearman {np.mean(near):+.2f}; of the 20 "
              f"most helpful images {other:.0%} are of the other class, at distance rank "
              f"{np.mean(rank):.0%}")  # fmt: skip
    draw(found, distance[0], (x, y), x_test[rows[0]], y_test[rows[0]], summary, output)
    return summary


def draw(found, distance, train, image, label, summary, output):
    (x, y), side = train, 4
    figure, axes = common.canvas(2, width=4.4, height=4)
    for axis, (name, scores) in zip(axes, found.items()):
        values = scores.values[0] / np.abs(scores.values[0]).max()
        for kind, colour in ((0, common.BLUE), (1, common.ORANGE)):
            axis.scatter(distance[y == kind], values[y == kind], s=9, color=colour, alpha=0.6,
                         linewidths=0, label=f"training {NAMES[kind]}")  # fmt: skip
        _, other, rank = summary[name]
        axis.set(xlabel="Euclidean distance to the test image", ylim=(-1.1, 2.3),
                 yticks=(-1, -0.5, 0, 0.5, 1),
                 title=f"{name}: most helpful at distance rank {rank:.0%},\n"
                       f"{other:.0%} of them of the other class")  # fmt: skip
        panels = [(image, f"test\n{NAMES[label]}", "black")]
        panels += [(x[j], f"helpful\n{NAMES[y[j]]}", common.GREEN) for j in
                   scores.top(side).indices[0]]  # fmt: skip
        for i, panel in enumerate(panels):
            common.show(axis.inset_axes((0.02 + 0.2 * i, 0.7, 0.17, 0.17)), *panel)
    axes[0].set_ylabel("influence / largest")
    axes[0].legend(fontsize=8, loc="lower left", handletextpad=0.1)
    figure.suptitle(
        "Both models are right: one by near images of the same class, the other by more",
        fontsize=12,
    )
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
