"""The forms in which users hold data, read through Keras's own adapters.

So `model.fit` and this package see the same data with the same dtypes.
"""

import contextlib
import itertools
import random

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data import checks


def whole_of(data, name, class_weight=None):
    """All of a tuple of arrays as tensors, cast as `model.fit` casts it; sparse ones stay sparse."""
    data = tuple(_in_order(part) for part in data)
    check_arrays(data, name)
    x, y, w = (*data, None, None)[:3]
    x = tf.nest.map_structure(_strings_as_tensor, x)
    sizes = [int(np.shape(leaf)[0]) for leaf in _leaves(data)]
    try:
        adapter = _keras.get_data_adapter(
            x=x, y=y, sample_weight=w, batch_size=max(sizes), class_weight=class_weight
        )
        if all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in _leaves((x, y, w))):
            # The arrays that are in Keras's dataset, without the time it takes to build one.
            whole = next(iter(adapter.get_numpy_iterator()))
        else:
            whole = next(iter(adapter.get_tf_dataset()))
    except (ValueError, TypeError) as error:
        message = f"`{name}` is not what Keras can read: {error}"
        objects = [label for label, kind in _kinds(x, y, w) if str(kind) == "object"]
        if objects:
            message += f". {' and '.join(objects)} should be of numbers, not of objects: `.astype('float32')`"
        raise type(error)(message) from error
    return tf.nest.map_structure(
        lambda t: t if isinstance(t, tf.SparseTensor) else tf.convert_to_tensor(t), whole
    )


def _in_order(part):
    """The same with sparse matrices row by row, as TensorFlow needs them."""
    if scipy.sparse.issparse(part):
        return part.tocsr()
    if isinstance(part, tf.SparseTensor):
        return tf.sparse.reorder(part)
    if isinstance(part, dict):
        return {key: _in_order(value) for key, value in part.items()}
    return type(part)(map(_in_order, part)) if type(part) in (list, tuple) else part


def passes_of(data, name, class_weight=None):
    """A function that starts a pass over a batched `tf.data.Dataset` or a `PyDataset`."""
    if isinstance(data, keras.utils.PyDataset):
        return _pydataset_passes(data, name, class_weight)
    check_finite(data, name)
    spec = data.element_spec if isinstance(data.element_spec, tuple) else (data.element_spec,)
    if len(spec) > 3:
        raise ValueError(
            f"`{name}` should have elements (x, y) or (x, y, sample_weight). Received elements "
            f"of {len(spec)} parts"
        )
    checks.check_kinds(spec, name)
    for leaf in tf.nest.flatten(spec):
        if not isinstance(leaf, (tf.TensorSpec, tf.SparseTensorSpec)):
            raise TypeError(
                f"`{name}` should have elements that are made of tensors. Received: {leaf}"
            )
    if any(leaf.shape.rank == 0 for leaf in tf.nest.flatten(spec)):
        raise ValueError(
            f"`{name}` should be batched: its elements are single examples. Add `.batch(256)`."
        )
    as_tuples = data if isinstance(data.element_spec, tuple) else data.map(lambda x: (x,))
    batches = _keras.get_data_adapter(as_tuples, class_weight=class_weight).get_tf_dataset()

    def epoch():
        with alike(data, name):
            yield from batches

    return epoch


def check_finite(data, name):
    """Raise for a dataset that is known never to end."""
    endless = (
        data.num_batches is None
        if isinstance(data, keras.utils.PyDataset)
        else data.cardinality() == tf.data.INFINITE_CARDINALITY
    )
    if endless:
        raise ValueError(
            f"`{name}` should be finite. Remove `.repeat()` or add `.take(...)`; give a PyDataset "
            "its `__len__`."
        )


@contextlib.contextmanager
def pydataset_pass(data, name, class_weight=None, number=0):
    """One epoch of a `PyDataset` as a `tf.data.Dataset`, for which its workers have to be told.

    What it draws from NumPy's and Python's global generators is undone at the end. So that
    randomness shows all the same, passes of another `number` draw other numbers.
    """
    states = np.random.get_state(), random.getstate()
    if number:
        np.random.seed(number)
        random.seed(number)
    adapter = _keras.get_data_adapter(data, class_weight=class_weight)
    adapter.on_epoch_begin()
    try:
        with alike(data, name):
            yield adapter.get_tf_dataset()
    finally:
        adapter.on_epoch_end()
        np.random.set_state(states[0])
        random.setstate(states[1])


def _pydataset_passes(data, name, class_weight):
    check_finite(data, name)
    numbers = itertools.count()

    def epoch():
        with pydataset_pass(data, name, class_weight, next(numbers)) as batches:
            yield from batches

    return epoch


@contextlib.contextmanager
def alike(data, name):
    """Where reading a dataset fails since its batches are not made of the same parts, say so.

    TensorFlow and Keras take the first one or two for the form of all.
    """
    try:
        yield
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        found = _unlike(data, error)
        if not found:
            raise
        raise ValueError(
            f"`{name}` should have the same parts in all batches, and no None among them, but {found}. "
            "Give sample_weight in each batch, ones where examples have no weights, or in none; zeros for "
            "labels of an output without a loss."
        ) from error


def _unlike(data, error):
    """How the parts of a dataset's batches differ, in words; "" where they do not."""
    if not isinstance(data, keras.utils.PyDataset):
        of_tensorflow = "did not match the expected structure" in str(error)
        return "its generator gives others than its `output_signature` has" if of_tensorflow else ""
    first = ""
    for i in range(data.num_batches):
        batch = data[i]
        if not isinstance(batch, (tuple, list)):
            return ""
        for part, label in zip(batch, checks.PARTS):
            if any(leaf is None for leaf in tf.nest.flatten(part)):
                return f"batch {i} has None in {label}"
        parts = ", ".join(checks.PARTS[: len(batch)])
        first = first or parts
        if parts != first:
            return f"batch 0 has {first} and batch {i} has {parts}"
    return ""


def check_arrays(data, name):
    """Raise unless a tuple is made of arrays with as many rows in all of its parts."""
    if len(data) not in (1, 2, 3):
        raise ValueError(
            f"`{name}` should be (x, y) or (x, y, sample_weight). Received a tuple of {len(data)}"
        )
    checks.check_kinds(data, name)
    for part, label in zip(data, checks.PARTS):
        if part is None and label != "x":
            continue
        for leaf in tf.nest.flatten(part):
            if leaf is None and label == "y":
                raise TypeError(
                    f"`{name}`: y holds None. For an output without a loss give zeros, one row per "
                    "example: nothing reads them."
                )
            if isinstance(leaf, (str, bytes)) or len(np.shape(leaf)) == 0:
                raise TypeError(
                    f"`{name}`: {label} should be made of arrays with one row per example. "
                    f"Received: {type(leaf).__name__}"
                )
    sizes = {int(np.shape(leaf)[0]) for leaf in _leaves(data)}
    if len(sizes) > 1:
        lengths = [
            f"{label}: {sorted({int(np.shape(leaf)[0]) for leaf in _leaves(part)})}"
            for part, label in zip(data, checks.PARTS)
            if part is not None
        ]
        raise ValueError(
            f"`{name}` should have as many rows in x as in y and sample_weight. "
            f"Received lengths of {', '.join(lengths)}"
        )
    if sizes == {0}:
        raise ValueError(f"`{name}` should have at least one example, but it is empty.")
    if len(data) == 3 and data[1] is None and data[2] is not None:
        raise ValueError(
            f"`{name}` has sample_weight without y, which Keras does not read. Give y, if only "
            "zeros that the loss ignores."
        )


def _strings_as_tensor(leaf):
    """NumPy's and pandas' strings, which Keras does not read, as a tensor; all else as it is."""
    dtypes = np.ravel(getattr(leaf, "dtypes", getattr(leaf, "dtype", None)))
    if not all(getattr(dtype, "kind", None) in ("U", "S", "O", "T") for dtype in dtypes):
        return leaf
    array = np.asarray(leaf, dtype=object)
    is_text = all(isinstance(value, (str, bytes)) for value in array.ravel())
    return tf.constant(array) if is_text else leaf


def _kinds(*parts):
    """The name and dtype of each array, of Pandas's too."""
    for part, label in zip(parts, checks.PARTS):
        for leaf in tf.nest.flatten(part):
            if leaf is not None:
                yield label, getattr(leaf, "dtype", type(leaf).__name__)


def _leaves(data):
    return [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
