"""What stands in a report: examples, their strongest scores, the suspicious list, as plain data."""

import dataclasses

import keras
import numpy as np

from keras_influence.engine.data import batches as data
from keras_influence.engine.problem import Problem
from keras_influence.report.differences import largest, spread_of
from keras_influence.report.examples import fetch
from keras_influence.report.labels import say
from keras_influence.report.parts import brightness, parts_of, table_of, thumbnail
from keras_influence.validate import as_positions, check_number

# Test examples shown by default, and entries of the lists of test examples, over all pages.
_TESTS, _ENTRIES = 500, 500_000


@dataclasses.dataclass(frozen=True)
class Options:
    """How a report is to look.

    Attributes:
        k: strongest proponents and opponents shown for a test example.
        rows: positions of the test examples to show, or a mask; None: all, at most the 500 with the
            largest loss (without a model, the first 500).
        suspicious: training examples in the list by self-influence.
        class_names: names in place of the numbers of classes.
        feature_names: names of the features of a single vector.
        show: a function of one example's x that says what to show: text, a picture as an array,
            or a dict of numbers and texts.
        title: the heading.

    Raises:
        ValueError, TypeError: an option is not usable; the message names it.
    """

    k: int = 8
    rows: object = None
    suspicious: int = 100
    class_names: object = None
    feature_names: object = None
    show: object = None
    title: str = "Influence report"

    def __post_init__(self):
        check_number("k", self.k, low=1, integer=True)
        check_number("suspicious", self.suspicious, integer=True)
        if self.show is not None and not callable(self.show):
            raise TypeError(
                f"`show` should be a function of one example's x. Received: {self.show!r}"
            )


def contents(scores, test, train, options, model=None, self_influence=None):
    """The tests and training examples of a report, as dicts that JSON can hold.

    Returns:
        dict of `tests` (a list), `trains` (a dict by position), `suspicious` (positions),
        `classes` (names), and the counts `n_test` and `n_train`.
    """
    losses = None if model is None or test is None else _losses(model, test)
    rows = _rows(options.rows, scores.n_test, losses)
    ranked = [strongest(scores, row, options.k) for row in rows]
    suspicious = _suspicious(self_influence, scores.n_train, options.suspicious)
    named = [j for both in ranked for side in both for j, _ in side]
    shown = np.unique([*suspicious, *named]).astype(int)
    tests, trains, classes = _entries(
        fetch(test, rows, scores.n_test, "test", model),
        fetch(train, shown, scores.n_train, "train", model),
        ranked,
        options,
        model,
    )
    for entry in tests if losses is not None else ():
        entry["loss"] = _short(losses[entry["i"]])
    for entry in trains if self_influence is not None else ():
        entry["self"] = _short(self_influence[entry["i"]])
    _add_columns(trains, shown, scores, rows)
    return {
        "tests": tests,
        "trains": {str(entry["i"]): entry for entry in trains},
        "suspicious": [int(j) for j in suspicious],
        "classes": classes,
        "n_test": scores.n_test,
        "n_train": scores.n_train,
    }


def _entries(tests, trains, ranked, options, model):
    """The entries of both data sets, the tests' with their neighbours; and the names of classes."""
    said, classes = _said(tests, trains, model, options)
    looks = [_Looks(examples, options) for examples in (tests, trains)]
    limits = brightness([image for look in looks for image in look.images()])
    entries = [
        [look.entry(at, of[at], limits) for at in range(len(look.parts))]
        for look, of in zip(looks, said)
    ]
    here, there = ([parts.numbers for parts in look.parts] for look in looks)
    spread = spread_of([*here, *there])
    numbers = dict(zip(trains.positions.tolist(), there))
    for entry, own, both in zip(entries[0], here, ranked):
        for side, pairs in zip(("top", "bottom"), both):
            entry[side] = [_neighbour(j, v, largest(own, numbers[j], spread)) for j, v in pairs]
    return *entries, classes


class _Looks:
    """The parts of some examples, and what becomes of them in a page."""

    def __init__(self, examples, options):
        self._examples = examples
        self.parts = [
            parts_of(inputs, options.feature_names, options.show if inputs else None)
            for inputs in examples.inputs
        ]

    def images(self):
        return [image for parts in self.parts for image in parts.images]

    def entry(self, at, said, limits):
        parts = self.parts[at]
        found = {
            "images": [thumbnail(image, limits) for image in parts.images],
            "text": parts.text,
            "table": table_of(parts),
            "label": said.label,
            "predicted": said.predicted,
            "sure": None if said.sure is None else _short(said.sure),
            "wrong": bool(said.wrong) or None,
        }
        known = {key: value for key, value in found.items() if value not in ("", None, [])}
        return {"i": int(self._examples.positions[at]), **known}


def _losses(model, test):
    """The loss of each test example; None where they have no labels, which a target does without."""
    few = data.read(test, None, "test").head(1)
    if keras.utils.unpack_x_y_sample_weight(few)[1] is None:
        return None
    problem = Problem(model, test, name="test")
    return problem.losses(problem.train)


def _rows(rows, n, losses):
    if rows is not None:
        return np.sort(as_positions(rows, n, "rows", "test"))
    if n <= _TESTS:
        return np.arange(n)
    first = np.arange(n) if losses is None else np.argsort(-losses, kind="stable")
    return np.sort(first[:_TESTS])


def strongest(scores, row, k):
    """The proponents and the opponents of a test example, as lists of (position, score)."""
    alone = dataclasses.replace(scores, values=np.asarray(scores.values[int(row)])[None])
    sides = alone.top(k), alone.bottom(k)
    return [
        [(int(j), _short(v)) for j, v in zip(side.indices[0], side.values[0]) if sign * v > 0]
        for side, sign in zip(sides, (1, -1))
    ]


def _suspicious(self_influence, n, count):
    if self_influence is None:
        return np.empty(0, int)
    if np.shape(self_influence) != (n,):
        raise ValueError(
            f"`self_influence` should be {n} numbers, one for each training example. "
            f"Received: shape {np.shape(self_influence)}"
        )
    return np.argsort(-np.asarray(self_influence), kind="stable")[:count]


def _said(tests, trains, model, options):
    """What is said of both, by the same reading of their labels where both have some."""
    both = tests, trains
    labelled = [group for group in both if any(group.labels)]
    said, classes = say(labelled, model, options.class_names)
    by_group = {id(group): part for group, part in zip(labelled, said)}
    return [by_group.get(id(group)) or say([group], model)[0][0] for group in both], classes


def _neighbour(j, value, different):
    shown = [[name, f"{a:.3g}", f"{b:.3g}"] for name, a, b in different]
    return [j, value, shown] if shown else [j, value]


def _add_columns(entries, shown, scores, rows):
    """To each training example, the test examples that it helps and harms, strongest first."""
    part = np.empty((len(rows), len(shown)))
    for at, row in enumerate(rows):
        part[at] = np.asarray(scores.values[int(row)])[shown]
    most = max(10, _ENTRIES // (2 * max(1, len(shown))))
    for entry, column in zip(entries, part.T):
        for name, sign in (("helps", 1), ("harms", -1)):
            order = np.argsort(-sign * column, kind="stable")
            order = order[sign * column[order] > 0]
            entry[f"n_{name}"] = len(order)
            entry[name] = [[int(rows[at]), _short(column[at])] for at in order[:most]]


def _short(value):
    """A number of three digits, for a smaller file; JSON has no infinity."""
    return float(f"{np.nan_to_num(float(value)):.3g}")
