"""Wrong labels, found by checking a few examples. (Koh & Liang 2017, Figure 6.)

A tenth of the labels of scikit-learn's digits are wrong. Someone checks the training
examples in the order of their self-influence, of their loss, or at random, and mends the
labels that are wrong; then the model is trained anew.

    python examples/fixing_labels.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_influence import InfluenceModel

CHECKED = np.array([0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4])


def data(n, seed):
    """n training digits with a tenth of the labels moved to another class, and the true labels."""
    digits = load_digits()
    x, x_test, y, y_test = train_test_split(
        digits.images / 16, digits.target, train_size=n, random_state=seed, stratify=digits.target
    )
    rng = np.random.default_rng(seed)
    wrong, noisy = rng.choice(n, n // 10, replace=False), y.copy()
    noisy[wrong] = (y[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return (x, noisy), y, (x_test, y_test)


def train_model(x, y):
    inputs = keras.Input((8, 8))
    l2 = keras.regularizers.L2(1e-3)
    outputs = keras.layers.Dense(10, "softmax", kernel_regularizer=l2)(
        keras.layers.Flatten()(inputs)
    )
    model = InfluenceModel(inputs, outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    minimiser = common.Minimiser(model, x, y)
    minimiser.run(tol=1e-6)
    return model, minimiser


def orders(model, train, rng):
    """The order in which training examples are checked, by each method."""
    p = model.predict(train[0], verbose=0)[np.arange(len(train[1])), train[1]]
    return {
        "self-influence": np.argsort(-model.self_influence(train, damping=1e-3)),
        "loss": np.argsort(p),
        "random": rng.permutation(len(p)),
    }


def retrained(minimiser, labels, test):
    """Test accuracy after training with these labels."""
    minimiser.run(y=labels, tol=1e-6)
    return np.mean(minimiser.model(test[0]).numpy().argmax(1) == test[1])


def main(output, quick=False):
    common.double_precision()
    n, seeds = (200, 1) if quick else (1000, 3)
    checked = CHECKED[::2] if quick else CHECKED
    fixed, accuracy, clean = {}, {}, []
    for seed in range(seeds):
        (x, noisy), y, test = data(n, seed)
        model, minimiser = train_model(x, noisy)
        ranked = orders(model, (x, noisy), np.random.default_rng(seed))

        clean.append(retrained(minimiser, y, test))
        for name, order in ranked.items():
            for part in checked:
                seen = order[: int(part * n)]
                mended = noisy.copy()
                mended[seen] = y[seen]
                found = np.sum(mended != noisy) / np.sum(y != noisy)
                fixed.setdefault(name, []).append(found)
                accuracy.setdefault(name, []).append(retrained(minimiser, mended, test))
    fixed, accuracy = (
        {k: np.reshape(v, (seeds, -1)) for k, v in t.items()} for t in (fixed, accuracy)
    )

    print(f"softmax regression, {n} digits, {n // 10} labels wrong, {seeds} splits (means)")
    print(f"  test accuracy with wrong labels {accuracy['random'][:, 0].mean():.1%}, "
          f"with true ones {np.mean(clean):.1%}")  # fmt: skip
    for name in fixed:
        parts = "  ".join(
            f"{c:.0%}: {f:.0%}, {a:.1%}"
            for c, f, a in zip(checked[1:], fixed[name].mean(0)[1:], accuracy[name].mean(0)[1:])
        )
        print(f"  {name:15s} checked: found, accuracy   {parts}")
    draw(checked, fixed, accuracy, np.mean(clean), output)
    return {name: (fixed[name].mean(0), accuracy[name].mean(0)) for name in fixed}


def draw(checked, fixed, accuracy, clean, output):
    figure, axes = common.canvas(2, width=4.4)
    styles = {"self-influence": (common.BLUE, "o-"), "loss": (common.ORANGE, "s-"),
              "random": (common.GREY, "^-")}  # fmt: skip
    for name, (colour, style) in styles.items():
        for axis, table in zip(axes, (fixed, accuracy)):
            values = 100 * table[name]
            axis.plot(100 * checked, values.mean(0), style, color=colour, label=name, markersize=5)
            low, high = values.min(0), values.max(0)
            axis.fill_between(100 * checked, low, high, color=colour, alpha=0.15, linewidth=0)
    axes[0].set(ylabel="wrong labels found (%)", title="nearly all within the first tenth or two")
    axes[0].legend(loc="center right", bbox_to_anchor=(1, 0.62))
    axes[1].axhline(100 * clean, color="black", linestyle=":", linewidth=1)
    axes[1].text(0, 100 * clean, "all labels right", va="bottom", fontsize=9)
    axes[1].set(ylabel="test accuracy (%)", title="and the accuracy comes back with them")
    for axis in axes:
        axis.set_xlabel("training examples checked (%)")
    figure.suptitle("Self-influence finds the wrong labels", fontsize=12)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
