"""What does influence see that a similarity does not? (Koh & Liang 2017, Figure 1.)

For logistic regression, influence is an inner product of two images, weighted by how much
loss the training image has, in the metric of the inverse Hessian. Here each ingredient is
left out in turn, and what remains is compared with actual retraining.

    python examples/what_influence_is_made_of.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np

from keras_influence import InfluenceModel

CLASSES = (2, 4)  # Pullover, Coat
DAMPING = 0.0


def train_model(train):
    inputs = keras.Input(train[0].shape[1:])
    l2 = keras.regularizers.L2(0.005)
    outputs = keras.layers.Dense(1, "sigmoid", kernel_regularizer=l2)(
        keras.layers.Flatten()(inputs)
    )
    model = InfluenceModel(inputs, outputs)
    model.compile(loss="binary_crossentropy")
    minimiser = common.Minimiser(model, *train)
    minimiser.run()
    return model, minimiser


def measures(model, test, train):
    """Influence, and what is left of it without one ingredient or all, for each training image."""
    full = model.influence(test, train, damping=DAMPING).values[0]
    x, x_test = (np.reshape(t[0], (len(t[0]), -1)) for t in (train, test))
    signs, sign = (2 * np.ravel(t[1]) - 1 for t in (train, test))
    p = model.predict(train[0], verbose=0)[:, 0]
    error = np.abs(np.ravel(train[1]) - p)  # |∂ℓ/∂logit|: near 0 where the model is right
    p_test = model.predict(test[0], verbose=0)[0, 0]
    error_test = abs(test[1][0, 0] - p_test)
    product = (x @ x_test[0] + 1) * signs * sign
    return {
        "influence": full,
        "without the Hessian": error_test * error * product / len(x),
        "without the training loss": full / error,
        "inner product of images": product,
    }


def main(output, quick=False):
    common.double_precision()
    n, refits, pooled = (300, 20, 4) if quick else (1500, 100, 2)
    x, y = common.fashion_mnist(n, CLASSES, pooled=pooled)
    train = x, y[:, None]
    x_test, y_test = common.fashion_mnist(500, CLASSES, "test", pooled)
    model, minimiser = train_model(train)
    p = model.predict(x_test, verbose=0)[:, 0]
    row = np.argmax((p > 0.5) != y_test)  # the first test image that is taken for the other class
    test = x_test[row : row + 1], y_test[row : row + 1, None]
    found = measures(model, test, train)

    rng = np.random.default_rng(0)
    strongest = np.argsort(-np.abs(found["influence"]))[: refits // 2]
    others = rng.choice(np.setdiff1d(np.arange(n), strongest), refits - len(strongest), False)
    chosen = np.concatenate([strongest, others])
    actual = minimiser.changes(chosen, common.loss_of(model, *test))

    print(f"logistic regression, {n} images, test image {row}; {refits} images left out in turn")
    correlations = {}
    for name, values in found.items():
        correlations[name] = common.pearson(values[chosen], actual)
        print(f"  {name:27s} Pearson with actual retraining {correlations[name]:.4f}")
    draw(found, actual, chosen, y == y_test[row], correlations, output)
    return correlations


def draw(found, actual, chosen, same, correlations, output):
    figure, axes = common.canvas(4, width=2.9, height=3.2)
    for axis, (name, values) in zip(axes, found.items()):
        for kind, colour, label in (
            (same, common.BLUE, "same class"),
            (~same, common.ORANGE, "other class"),
        ):
            rows = kind[chosen]
            axis.scatter(actual[rows], values[chosen][rows], s=14, color=colour, label=label,
                         alpha=0.8, linewidths=0)  # fmt: skip
        axis.set(xlabel="actual change of test loss", title=f"{name}\nr = {correlations[name]:.4f}")
        axis.locator_params(nbins=4)
    axes[0].set_ylabel("score")
    axes[0].legend(fontsize=8, loc="upper left", handletextpad=0.1)
    figure.suptitle("Every ingredient of influence is needed to predict retraining", fontsize=12)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
