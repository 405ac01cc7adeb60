"""Labels and predictions in words: what was given, what the model says, whether they differ."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_influence.engine.loss.classes import probabilities, read_classes


@dataclasses.dataclass(frozen=True)
class Said:
    """What is said of one example.

    Attributes:
        label: the given label, "" if there is none.
        predicted: what the model predicts, "" if that is not known.
        sure: the probability of the predicted class, or None.
        wrong: whether a predicted class is another than the given one.
    """

    label: str = ""
    predicted: str = ""
    sure: float | None = None
    wrong: bool = False


def say(groups, model=None, class_names=None):
    """What is said of the examples of several data sets, read together.

    Args:
        groups: list of `Examples`.
        model: the model, if the examples have outputs.
        class_names: a list or dict of names in place of the numbers of classes.

    Returns:
        `(said, names)`: for each group a list of `Said`; and the names of the classes that occur,
        in their order, empty where labels are no classes.
    """
    labels = [label for group in groups for label in group.labels]
    outputs = [out for g in groups for out in g.outputs or [None] * len(g)]
    width = _width(outputs)
    classes = _classes(labels, width)
    if classes is None:
        said = [Said(_shown(label), _number(out)) for label, out in zip(labels, outputs)]
        return _cut(said, groups), []
    names = [class_name(value, class_names, classes.values[0] < 0) for value in classes.values]
    chosen = [None] * len(labels)
    if width is not None:
        p = probabilities(np.stack([out[0] for out in outputs]), model, classes)
        chosen = [(int(c), float(v)) for c, v in zip(p.argmax(1), p.max(1))]
    said = [
        Said(names[given])
        if best is None
        else Said(names[given], _at(names, best[0]), best[1], best[0] != given)
        for given, best in zip(classes.given, chosen)
    ]
    return _cut(said, groups), [names[c] for c in np.unique(classes.given)]


def _classes(labels, width):
    if not labels or any(len(label) != 1 for label in labels):
        return None
    if len({label[0].shape for label in labels}) > 1:
        return None
    return read_classes(np.stack([label[0] for label in labels]), width)


def _width(outputs):
    """How many numbers the model puts out for an example; None if that is no single vector."""
    if not outputs or any(out is None or len(out) != 1 for out in outputs):
        return None
    sizes = {out[0].size for out in outputs}
    flat = all(max(out[0].shape, default=1) == out[0].size for out in outputs)
    return sizes.pop() if len(sizes) == 1 and flat else None


def class_name(value, class_names=None, signed=False):
    """What to call the class that a number in the labels stands for.

    Args:
        value: the number.
        class_names: a dict from numbers to names, or a list of names by number, or None.
        signed: whether labels are -1 and 1: a list names -1 first.

    Raises:
        ValueError, TypeError: there is no name for it.
    """
    if class_names is None:
        return str(value)
    if isinstance(class_names, str) or not hasattr(class_names, "__getitem__"):
        raise TypeError(f"`class_names` should be a list or dict. Received: {class_names!r}")
    number, by_place = int(value), not isinstance(class_names, Mapping)
    if by_place and signed:
        number = max(number, 0)
    try:
        if by_place and number < 0:
            raise IndexError(number)
        return _value(class_names[number])
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"`class_names` should have a name for each class, but has none for {value}. "
            f"Received: {len(class_names)} names"
        ) from error


def _at(names, index):
    return names[index] if index < len(names) else str(index)


def _shown(label):
    return "; ".join(_text(array) for array in label)


def _number(out):
    """A regression's output as text; of larger outputs, nothing."""
    return _text(out[0]) if out is not None and len(out) == 1 and out[0].size == 1 else ""


def _text(array):
    array = np.asarray(array)
    if array.size > 8:
        return f"{array.dtype} of shape {array.shape}"
    return ", ".join(_value(value) for value in array.reshape(-1))


def _value(value):
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.4g}" if isinstance(value, np.floating) else str(value)


def _cut(said, groups):
    """The list cut into those of the groups."""
    stops = np.cumsum([0, *(len(group) for group in groups)])
    return [said[start:stop] for start, stop in zip(stops, stops[1:])]
