"""Which training digits made a model classify a test digit as it did, and which labels look wrong?

Trains a softmax regression on scikit-learn's digits with 5 % of the training
labels changed on purpose, explains its most confident mistake and two other
test digits, and looks for the changed labels by self-influence. Writes all of it as
one page to explore, which opens by double click.

    python examples/quickstart.py [--output quickstart.png] [--report report.html]
"""

import argparse
import pathlib
import time

import quiet  # noqa: F401

# isort: split
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_influence import InfluenceModel

CHANGED = 0.05


def load(seed=0):
    """Digits, split, with a fraction of the training labels moved to another class."""
    digits = load_digits()
    images = digits.images.astype("float32") / 16
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.2, random_state=seed, stratify=digits.target
    )
    rng = np.random.default_rng(seed)
    changed = rng.choice(len(y_train), int(CHANGED * len(y_train)), replace=False)
    y_train[changed] = (y_train[changed] + rng.integers(1, 10, len(changed))) % 10
    return (x_train, y_train), (x_test, y_test), changed


def train_model(train):
    """Softmax regression: convex, so that influence has one well-defined meaning."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8))
    flat = keras.layers.Flatten()(inputs)
    l2 = keras.regularizers.L2(1e-3)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=l2)(flat)
    model = InfluenceModel(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(*train, epochs=60, batch_size=128, verbose=0)
    return model


def explain(model, train, test, rows):
    """Print, in words, what each of the chosen test digits leans on."""
    x, y = test[0][rows], test[1][rows]
    scores = model.influence((x, y), train, damping=1e-3)
    print(scores, "\n")
    guesses = model.predict(x, verbose=0)
    top, bottom = scores.top(3), scores.bottom(3)
    for i, row in enumerate(rows):
        guess = guesses[i].argmax()
        print(f"test digit {row}: a {y[i]}, taken for a {guess} ({guesses[i, guess]:.0%} sure)")
        for title, ranking, verb in (("proponents", top, "rise"), ("opponents", bottom, "fall")):
            print(f"  {title}: without it, the loss would {verb} by")
            for j, value in zip(ranking.indices[i], ranking.values[i]):
                print(f"    training digit {j:4d}, labelled {train[1][j]}: {abs(value):.4f}")
    return scores


def find_wrong_labels(model, train, changed):
    """Rank training digits by self-influence, and count the changed labels among the first."""
    ranked = model.find_label_issues(train, by="self_influence", damping=1e-3).index
    checked = 2 * len(changed)
    found = np.isin(ranked[:checked], changed).sum()
    print(
        f"\n{len(changed)} of {len(train[1])} training labels were changed on purpose. Among the "
        f"{checked} digits with the largest self-influence are {found} of them "
        f"({found / len(changed):.0%}); {checked} digits picked at random would hold about "
        f"{checked * len(changed) / len(train[1]):.0f}."
    )
    return found / len(changed)


def main(output, report):
    start = time.perf_counter()
    train, test, changed = load()
    model = train_model(train)
    accuracy = model.evaluate(*test, verbose=0)[1]
    print(f"softmax regression on {len(train[1])} digits, test accuracy {accuracy:.1%}\n")
    predicted = model.predict(test[0], verbose=0)
    wrong = predicted.argmax(1) != test[1]
    rows = np.concatenate([np.argsort(-predicted.max(1) * wrong)[:2], np.flatnonzero(~wrong)[:2]])
    scores = explain(model, train, test, rows)
    find_wrong_labels(model, train, changed)
    figure = scores.plot((test[0][rows], test[1][rows]), train)
    figure.savefig(output, dpi=130)
    model.report(report, test, train, damping=1e-3, title="Handwritten digits")
    print(
        f"\nThe same as a picture: {output}\nAll {len(test[1])} test digits, to explore in a browser: "
        f"{pathlib.Path(report).absolute().as_uri()}\n({time.perf_counter() - start:.0f} s in all)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="quickstart.png")
    parser.add_argument("--report", default="report.html")
    main(**vars(parser.parse_args()))
