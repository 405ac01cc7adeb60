"""Does influence predict what retraining does? (Koh & Liang 2017, Figure 2.)

Softmax regression on scikit-learn's digits, explained with conjugate gradients and with
LiSSA, and a small convolutional net, which is not convex. Training digits are left out
one at a time, and the model is retrained to its minimum.

    python examples/leave_one_out.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_influence import CG, InfluenceModel, LiSSA

layers = keras.layers


def digits(n):
    data = load_digits()
    x, y = data.images[..., None] / 16, data.target
    return (x[:n], y[:n]), (x[1200:], y[1200:])


def softmax():
    inputs = keras.Input((8, 8, 1))
    l2 = keras.regularizers.L2(1 / 64)
    outputs = layers.Dense(10, "softmax", kernel_regularizer=l2, bias_regularizer=l2)(
        layers.Flatten()(inputs)
    )
    return InfluenceModel(inputs, outputs)


def conv_net():
    """Two layers of convolutions; every weight is regularised, so that there is a minimum."""
    l2 = keras.regularizers.L2(0.01)
    options = {"kernel_regularizer": l2, "bias_regularizer": l2}
    inputs = keras.Input((8, 8, 1))
    hidden = layers.Conv2D(6, 3, strides=2, activation="tanh", **options)(inputs)
    hidden = layers.Conv2D(12, 2, activation="tanh", **options)(hidden)
    outputs = layers.Dense(10, "softmax", **options)(layers.Flatten()(hidden))
    return InfluenceModel(inputs, outputs)


def trained(build, train):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(loss="sparse_categorical_crossentropy")
    minimiser = common.Minimiser(model, *train)
    minimiser.run(tol=1e-8)
    return model, minimiser


def hardest(model, test):
    """The test digit with the largest loss among those that are wrong."""
    p = model.predict(test[0], verbose=0)
    row = np.argmin(p[np.arange(len(p)), test[1]])
    return test[0][row : row + 1], test[1][row : row + 1]


def main(output, quick=False):
    common.double_precision()
    n, refits, conv_refits = (300, 8, 3) if quick else (600, 60, 25)
    train, test = digits(n)
    results = {}

    model, minimiser = trained(softmax, train)
    one = hardest(model, test)
    scores = {
        "softmax regression, CG": model.influence(one, train, method=CG(tol=1e-8), damping=0),
        "softmax regression, LiSSA": model.influence(one, train, method=LiSSA(tol=1e-2), damping=0),
    }
    chosen = np.argsort(-np.abs(scores["softmax regression, CG"].values[0]))[:refits]
    actual = minimiser.changes(chosen, common.loss_of(model, *one), tol=1e-8)
    for name, found in scores.items():
        results[name] = found.values[0, chosen], actual, found

    model, minimiser = trained(conv_net, train)
    one = hardest(model, test)
    found = model.influence(one, train, method="direct", damping=0, curvature="hessian")
    chosen = np.argsort(-np.abs(found.values[0]))[:conv_refits]
    actual = minimiser.changes(chosen, common.loss_of(model, *one), tol=1e-8)
    results["conv net, not convex"] = found.values[0, chosen], actual, found

    print(f"{n} digits; the most influential ones left out one at a time, retrained to the minimum")
    figure, axes = common.canvas(3)
    table = {}
    for axis, colour, (name, (predicted, actual, found)) in zip(
        axes, (common.BLUE, common.GREEN, common.RED), results.items()
    ):
        r, slope = common.pearson(predicted, actual), predicted @ actual / (predicted @ predicted)
        table[name] = r, slope
        print(f"  {name:26s} {len(actual):3d} refits: Pearson {r:.4f}, actual/predicted "
              f"{slope:.3f}, residual {found.residual.max():.0e}")  # fmt: skip
        common.diagonal(axis, predicted, actual, colour, f"{name}\nPearson {r:.3f}")
    figure.suptitle("Influence predicts what retraining without an example does", fontsize=12)
    figure.savefig(output, dpi=110)
    return table


if __name__ == "__main__":
    common.run(main, __doc__)
