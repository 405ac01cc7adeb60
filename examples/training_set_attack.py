"""Can a few training images, changed invisibly, flip a prediction? (Koh & Liang 2017, Figure 5.)

The features of a small convolutional net are frozen, and its last layer is trained to the
minimum. `input_influence` says which way to move a training image so that one test loss
rises. Its sign is followed in small steps, with the last layer retrained after each; no
pixel may move by more than a few of 255 grey levels.

    python examples/training_set_attack.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np

from keras_influence import InfluenceModel

layers = keras.layers
CLASSES, NAMES = (2, 4), ("pullover", "coat")
LEVELS = 10  # grey levels of 255 that a pixel may move by


def train_model(train, epochs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    hidden = layers.Conv2D(16, 3, strides=2, activation="relu")(hidden)
    hidden = layers.Flatten()(hidden)
    l2 = keras.regularizers.L2(1e-3)
    head = layers.Dense(1, "sigmoid", kernel_regularizer=l2, name="head")
    model = InfluenceModel(inputs, head(hidden))
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    model.fit(*train, epochs=epochs, batch_size=32, verbose=0)
    for layer in model.layers[:-1]:
        layer.trainable = False
    model.compile(loss="binary_crossentropy")
    return model, keras.Model(inputs, hidden)


class Head:
    """The last layer, retrained on the features of changed images."""

    def __init__(self, model, body, x, y):
        self.body = body
        inputs = keras.Input(body.output_shape[1:])
        twin = keras.Model(inputs, model.get_layer("head")(inputs))
        twin.compile(loss="binary_crossentropy")
        self.minimiser = common.Minimiser(twin, body(x), y)

    def retrain(self, x):
        self.minimiser.run(x=self.body(x), tol=1e-5)


def attack(model, head, train, test, count, steps):
    """Move the `count` most influential images, step by step, until the prediction flips.

    Returns:
        The changed images, which ones they are, and the test image's probability of its own
        class before and after.
    """
    x, y = train[0].copy(), train[1]
    label = test[1][0, 0]

    def right():
        p = float(model(test[0])[0, 0])
        return p if label else 1 - p

    head.retrain(x)
    before = right()
    options = {"damping": 1e-3, "method": "cg", "curvature": "hessian"}
    slopes = model.input_influence(test, (x, y), **options)[0]
    # The images with which a move of all pixels by one level does most.
    chosen = np.argsort(-np.abs(slopes).sum((1, 2, 3)))[:count]
    budget = LEVELS / 255
    for _ in range(steps):
        slope = model.input_influence(test, (x, y), indices=chosen, **options)[0]
        moved = x[chosen] - 2 * budget / steps * np.sign(slope)
        moved = np.clip(moved, train[0][chosen] - budget, train[0][chosen] + budget)
        x[chosen] = np.clip(moved, 0, 1)
        head.retrain(x)
        if right() < 0.5:
            break
    return x, chosen, before, right()


def main(output, quick=False):
    n, tested, steps, counts = (150, 3, 3, (2, 20)) if quick else (300, 12, 4, (1, 2, 10, 30))
    x, y = common.fashion_mnist(n, CLASSES)
    x_test, y_test = common.fashion_mnist(400, CLASSES, "test")
    y, y_test = y[:, None].astype("float32"), y_test[:, None].astype("float32")
    model, body = train_model((x, y), epochs=5)
    head = Head(model, body, x, y)
    head.retrain(x)
    right = (model.predict(x_test, verbose=0) > 0.5)[:, 0] == y_test[:, 0]
    rows = np.random.default_rng(0).choice(np.flatnonzero(right), tested, replace=False)
    print(f"conv net, last layer trained on {n} images; test accuracy {right.mean():.3f}")
    flipped, shown = {}, None
    for count in counts:
        results = []
        for row in rows:
            test = x_test[[row]], y_test[[row]]
            results.append((row, *attack(model, head, (x, y), test, count, steps)))
        before, after = (np.array([r[k] for r in results]) for k in (3, 4))
        flipped[count] = float(np.mean(after < 0.5))
        print(f"  {count:2d} images ({count / n:.1%}) moved by at most {LEVELS} of 255 levels: "
              f"{np.sum(after < 0.5)} of {tested} predictions flipped; probability of the right "
              f"class {before.mean():.2f} before, {after.mean():.2f} after")  # fmt: skip
        fallen = [r for r in results if r[4] < 0.5]
        if fallen and count <= counts[-2]:
            shown = count, max(fallen, key=lambda r: r[3] - r[4])
    draw(x, y, x_test, y_test, flipped, tested, shown, output)
    return flipped


def draw(x, y, x_test, y_test, flipped, tested, shown, output):
    figure = common.canvas(1, width=9.6, height=3.4)[0]
    figure.clear()
    grid = figure.add_gridspec(2, 6)
    axis = figure.add_subplot(grid[:, :2])
    bars = axis.bar([str(k) for k in flipped], [100 * v for v in flipped.values()],
                    color=common.RED)  # fmt: skip
    axis.bar_label(bars, fmt="%.0f %%", fontsize=9)
    axis.set(xlabel=f"training images changed, of {len(x)}", ylim=(0, 108),
             ylabel=f"of {tested} test predictions flipped (%)")  # fmt: skip
    if shown:
        count, (row, changed, chosen, before, after) = shown
        label = int(y_test[row, 0])
        common.show(figure.add_subplot(grid[:, 2]), x_test[row],
                    f"test {NAMES[label]}:\n{before:.0%} sure before,\n{after:.0%} after")  # fmt: skip
        for i, j in enumerate(chosen[:3]):
            name = NAMES[int(y[j, 0])]
            common.show(figure.add_subplot(grid[0, 3 + i]), x[j], f"training {name}", common.BLUE)
            common.show(figure.add_subplot(grid[1, 3 + i]), changed[j], "as changed", common.RED)
        figure.suptitle(f"A change that is hard to see, in {count} training images, flips a "
                        f"prediction", fontsize=12)  # fmt: skip
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
