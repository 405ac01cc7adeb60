"""Which training examples make a model wrong about a subgroup? (Koh & Liang 2017, section 5.3.)

Four measurements of scikit-learn's breast cancer data, with a second clinic added by us: one
patient in ten was seen there, and its records differ in nothing but that. For training, all
but one of the second clinic's benign cases are lost, so a model learns that the clinic itself
is a bad sign. Influence on the benign patients who are misjudged there points at the cause.

    python examples/domain_mismatch.py [--quick] [--output picture.png]
"""

import common
import keras
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from keras_influence import InfluenceModel

MEASURED = (1, 4, 8, 9)  # mean texture, smoothness, symmetry and fractal dimension
KEPT = 1  # benign cases of the second clinic that are left for training


def data(seed):
    """Standardised features and the clinic, 0 or 1, as the last one; label 1 = malignant."""
    rng = np.random.default_rng(seed)
    x, y = load_breast_cancer(return_X_y=True)
    x, y = x[:, MEASURED], 1 - y
    clinic = rng.random(len(y)) < 0.1
    x, x_test, y, y_test, at, at_test = train_test_split(
        x, y, clinic, test_size=0.5, random_state=seed, stratify=2 * y + clinic
    )
    lost = np.flatnonzero(at & (y == 0))[KEPT:]
    x, y, at = (np.delete(t, lost, axis=0) for t in (x, y, at))
    scale = StandardScaler().fit(x)
    join = [np.column_stack([scale.transform(a), b]) for a, b in ((x, at), (x_test, at_test))]
    return (join[0], y[:, None]), (join[1], y_test[:, None]), at, at_test


def train_model(train):
    inputs = keras.Input((train[0].shape[1],))
    l2 = keras.regularizers.L2(0.002)
    model = InfluenceModel(inputs, keras.layers.Dense(1, "sigmoid", kernel_regularizer=l2)(inputs))
    model.compile(loss="binary_crossentropy")
    common.Minimiser(model, *train).run()
    return model


def errors(model, test, rows):
    p = model.predict(test[0][rows], verbose=0)[:, 0]
    return float(np.mean((p > 0.5) != test[1][rows, 0]))


def main(output, quick=False):
    common.double_precision()
    results = []
    for seed in range(2 if quick else 10):
        train, test, at, at_test = data(seed)
        model = train_model(train)
        p = model.predict(test[0], verbose=0)[:, 0]
        benign = np.flatnonzero(at_test & (test[1][:, 0] == 0))
        misjudged = benign[p[benign] > 0.5]
        patients = test[0][misjudged], test[1][misjudged]
        values = model.influence(patients, train, damping=0).values.mean(0)
        cause = np.flatnonzero(at & (train[1][:, 0] == 1))
        worst = np.argsort(values)[: len(cause)]
        chance = len(cause) / len(values)
        found = np.isin(worst, cause).mean()
        weight = np.abs(model.layers[-1].kernel.numpy()[:, 0])
        rank = int(np.sum(weight > weight[-1])) + 1
        mended = train_model(tuple(np.delete(t, worst, axis=0) for t in train))
        elsewhere = np.flatnonzero(~at_test)
        results.append(
            (found, chance, rank, errors(model, test, benign), errors(mended, test, benign),
             errors(model, test, elsewhere), errors(mended, test, elsewhere))
        )  # fmt: skip
        if seed == 0:
            first = values, at, train[1][:, 0], len(misjudged)
    found, chance, rank, before, after, other, other_after = np.mean(results, axis=0)
    print(f"{len(results)} splits of {len(train[1]) + len(test[1])} patients (means):")
    print(f"  as many of the most harmful training cases as clinic 2 has malignant ones: "
          f"{found:.0%} are these (by chance {chance:.0%})\n"
          f"  the clinic's coefficient is number {rank:.1f} of {len(MEASURED) + 1} in size")  # fmt: skip
    print(f"  benign patients of clinic 2 taken for malignant: {before:.0%}, without the most harmful "
          f"{after:.0%}; errors elsewhere {other:.1%} and {other_after:.1%}")  # fmt: skip
    draw(first, (before, after, other, other_after), output)
    return {"found": found, "chance": chance, "rank": rank, "before": before, "after": after}


def draw(first, rates, output):
    values, at, y, count = first
    figure, axes = common.canvas(2, width=4.6, height=3.6, width_ratios=(3, 2))
    order = np.argsort(values)
    groups = {
        "clinic 1": (~at, common.GREY),
        "clinic 2, malignant": (at & (y == 1), common.RED),
        "clinic 2, benign": (at & (y == 0), common.BLUE),
    }
    place = np.empty(len(values), int)
    place[order] = np.arange(len(values)) + 1
    for label, (rows, colour) in groups.items():
        axes[0].scatter(place[rows], values[rows], s=22 if rows.mean() < 0.5 else 7, color=colour,
                        label=label, linewidths=0)  # fmt: skip
    axes[0].axhline(0, color=common.GREY, linewidth=0.8, zorder=0)
    axes[0].set(xlabel="training patient, most harmful first",
                ylabel="influence on their mean loss",
                title=f"{count} benign patients of clinic 2 are misjudged")  # fmt: skip
    axes[0].legend(fontsize=9, loc="lower right")
    names = ("clinic 2,\nbenign", "the same,\nafter", "clinic 1", "the same,\nafter")
    colours = [common.RED, common.BLUE] * 2
    bars = axes[1].bar(range(4), [100 * r for r in rates], color=colours)
    axes[1].set_xticks(range(4), names)
    axes[1].bar_label(bars, fmt="%.0f %%", fontsize=9)
    axes[1].tick_params(axis="x", labelsize=8)
    axes[1].set(
        ylabel="test errors (%)",
        ylim=(0, 115 * max(rates)),
        title="leaving the most harmful out",
    )
    figure.suptitle("The few cases that taught the model a wrong rule are the most harmful ones",
                    fontsize=12)  # fmt: skip
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    common.run(main, __doc__)
