"""A few examples of a user's data, fetched by position, with what the model says of them."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_influence.engine.data.batches import read
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.loss.looks import called


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a report looks at of one data set.

    Attributes:
        positions: (m,) where these examples stand in the data, ascending.
        inputs: for each, a dict from the name of an input to its array.
        labels: for each, the arrays that its label is made of; none without labels.
        outputs: for each, the arrays that the model puts out; None without a model.
    """

    positions: np.ndarray
    inputs: list
    labels: list
    outputs: list | None

    def __len__(self):
        return len(self.positions)


def fetch(data, positions, count, name, model=None):
    """The examples at these positions.

    Args:
        data: in the forms that `influence` takes; None if there is nothing to be seen.
        positions: ascending, each once.
        count: how many examples the scores are about.
        name: the argument's name, for messages.
        model: to be run on them.

    Raises:
        ValueError: `data` has another length.
        TypeError: it has another form.
    """
    positions = np.asarray(positions, int)
    if data is None:
        return Examples(positions, [{}] * len(positions), [[]] * len(positions), None)
    batches = read(data, name=name)
    if batches.n != count:
        raise ValueError(
            f"`{name}` should be the {count} examples of the scores. Received: {batches.n}"
        )
    columns = _columns(data)
    inputs, labels, outputs = [], [], []
    for batch in batches.subset(positions) if len(positions) else ():
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)  # Of inputs alone it is no tuple.
        inputs += _rows(_named(x, columns))
        labels += [[]] * size_of(batch) if y is None else _listed(y)
        if model is not None:
            with called(model, batch, name) as (_, y_pred):
                outputs += _listed(y_pred)
    return Examples(positions, inputs, labels, None if model is None else outputs)


def _columns(data):
    """The names of a data frame's columns, where x is one."""
    found = getattr(data[0], "columns", None) if isinstance(data, tuple) else None
    return None if found is None else [str(column) for column in found]


def _named(x, columns):
    """The inputs as a dict from names to arrays; a data frame has an input for each column."""
    leaves = _leaves(x)
    if columns and len(leaves) == 1 and leaves[0][1].shape[1:] == (len(columns),):
        return {name: leaves[0][1][:, i] for i, name in enumerate(columns)}
    if len(leaves) == 1 and not tf.nest.is_nested(x):
        return {"": leaves[0][1]}
    return dict(leaves)


def _leaves(x, path=""):
    """Pairs of a name and an array of a nested structure, in TensorFlow's order."""
    if isinstance(x, dict):
        parts = [(str(key), x[key]) for key in sorted(x)]
    elif isinstance(x, (list, tuple)):
        parts = [(str(i), part) for i, part in enumerate(x)]
    else:
        return [(path, np.asarray(x))]
    return [leaf for key, part in parts for leaf in _leaves(part, f"{path}/{key}".lstrip("/"))]


def _rows(arrays):
    size = len(next(iter(arrays.values())))
    return [{name: array[i] for name, array in arrays.items()} for i in range(size)]


def _listed(structure):
    """For each example, the arrays of its row."""
    arrays = [np.asarray(t) for t in tf.nest.flatten(structure)]
    return [[array[i] for array in arrays] for i in range(len(arrays[0]))]
