"""Influence for a loss without a curvature: a linear SVM (Koh & Liang 2017, Figure 3.)

The hinge loss is piecewise linear, so the Hessian of an SVM knows nothing of the data.
Derivatives of a smooth hinge at the SVM's own weights do: how well they predict actual
retraining of the SVM depends on the temperature.

    python examples/smooth_hinge.py [--quick] [--output picture.png]
"""

import warnings

import common
import keras
import numpy as np
from sklearn.svm import LinearSVC

from keras_influence import InfluenceModel, ObjectiveWarning, SmoothHinge

CLASSES = (2, 4)  # Pullover, Coat
L2 = 0.005
TEMPERATURES = np.array([1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0])


def svm(x, y, left_out=None):
    """Weights at the minimum of mean hinge + L2 ‖w‖², by liblinear."""
    rows = np.arange(len(y)) != left_out
    solver = LinearSVC(
        loss="hinge", C=1 / (2 * L2 * len(y)), fit_intercept=False, tol=1e-8, max_iter=1_000_000
    )
    return solver.fit(x[rows], y[rows]).coef_[0]


def keras_svm(w):
    inputs = keras.Input((len(w),))
    dense = keras.layers.Dense(1, use_bias=False, kernel_regularizer=keras.regularizers.L2(L2))
    model = InfluenceModel(inputs, dense(inputs))
    dense.kernel.assign(w[:, None])
    model.compile(loss="hinge")
    return model


def data(n, split):
    """Images as rows, with a constant as the last feature; labels -1 and 1."""
    x, y = common.fashion_mnist(n, CLASSES, split, pooled=2)
    return np.hstack([x.reshape(len(x), -1), np.ones((len(x), 1))]), 2.0 * y - 1


def main(output, quick=False):
    common.double_precision()
    n, refits = (200, 20) if quick else (1000, 150)
    temperatures = TEMPERATURES[[2, 4, 7]] if quick else TEMPERATURES
    (x, y), (x_test, y_test) = data(n, "train"), data(500, "test")
    w = svm(x, y)
    losses = np.maximum(0, 1 - y_test * (x_test @ w))
    tested = np.argsort(-losses)[:10]
    train, test = (x, y[:, None]), (x_test[tested], y_test[tested, None])

    model = keras_svm(w)
    values = {0.0: model.influence(test, train, damping=0, curvature="hessian").values}
    with warnings.catch_warnings():  # The warning names the temperature that is taken.
        warnings.simplefilter("ignore", ObjectiveWarning)
        automatic = model.influence(test, train, damping=0).values
    for t in temperatures:
        model.compile(loss=SmoothHinge(t))
        values[t] = model.influence(test, train, damping=0, method="direct").values

    chosen = np.argsort(-np.abs(automatic).sum(0))[:refits]
    refitted = np.array([svm(x, y, left_out=j) for j in chosen])
    margins = y_test[tested, None] * (x_test[tested] @ refitted.T)
    actual = np.maximum(0, 1 - margins) - losses[tested, None]

    print(f"linear SVM, {n} images, 10 test images; {refits} images left out, SVM retrained")
    found = {t: common.pearson(v[:, chosen].ravel(), actual.ravel()) for t, v in values.items()}
    for t, r in found.items():
        print(f"  {'hinge itself' if t == 0 else f'temperature {t:g}':18s} Pearson {r:.3f}")
    found["auto"] = common.pearson(automatic[:, chosen].ravel(), actual.ravel())
    print(f"  curvature='auto'   Pearson {found['auto']:.3f}")
    draw(values[0.0][:, chosen], automatic[:, chosen], actual, found, temperatures, output)
    return found


def draw(raw, automatic, actual, found, temperatures, output):
    figure, axes = common.canvas(3)
    title = f"hinge as it is: no curvature\nPearson {found[0.0]:.2f}"
    common.diagonal(axes[0], raw.ravel(), actual.ravel(), common.RED, title)
    title = f"smooth hinge, as curvature='auto' takes it\nPearson {found['auto']:.2f}"
    common.diagonal(axes[1], automatic.ravel(), actual.ravel(), common.BLUE, title)
    axes[2].axhline(found[0.0], color=common.RED, linestyle="--", label="hinge as it is")
    axes[2].plot(temperatures, [found[t] for t in temperatures], "o-", color=common.BLUE,
                 label="smooth hinge")  # fmt: skip
    axes[2].set(xscale="log", xlabel="temperature t, in units of the margin", ylim=(None, 1),
                ylabel="Pearson with retraining", title="best with t up to 0.01")  # fmt: skip
    axes[2].legend(fontsize=9)
    figure.suptitle("A little smoothing makes influence true for a support vector machine",
                    fontsize=12)  # fmt: skip
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
