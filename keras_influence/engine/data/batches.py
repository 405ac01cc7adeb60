"""A user's data as batches in a stable order, with the number of examples known.

Arrays and PyDatasets are read through Keras's own data adapters, so `model.fit` and
this package see the same data with the same dtypes.
"""

import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.sizes import batch_size as _size
from keras_influence.validate import check_batch_size, check_class_weight

DEFAULT_BATCH_SIZE = 256
_SHUFFLE_BUFFER = 50_000


def read(data, batch_size=None, name="train", class_weight=None):
    """A user's data as `Batches`.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` of arrays or tensors, nested
            structures too; a batched, finite `tf.data.Dataset`; or a
            `keras.utils.PyDataset`.
        batch_size: examples per batch, for arrays. Defaults to 256. Results do
            not depend on it, memory and speed do.
        name: the argument's name, for messages.
        class_weight: dict from class index to weight, as in `model.fit`.

    Raises:
        TypeError, ValueError: `data` cannot be used, with the reason and the way out.
    """
    check_batch_size(batch_size)
    check_class_weight(class_weight)
    if isinstance(data, tuple):
        whole = _whole(data, name, class_weight)
        return ArrayBatches(whole, int(batch_size or DEFAULT_BATCH_SIZE), name)
    if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        raise TypeError(
            f"`{name}` should be a tuple (x, y) or (x, y, sample_weight), a batched "
            f"tf.data.Dataset or a keras.utils.PyDataset. Received: {type(data).__name__}"
        )
    if batch_size is not None:
        raise ValueError(
            f"`batch_size` should be left out when `{name}` is a dataset, which brings "
            f"its own batches. Received: batch_size={batch_size}"
        )
    if isinstance(data, keras.utils.PyDataset):
        return StreamBatches(_checked_pydataset(data, name, class_weight), name)
    return StreamBatches(_checked_dataset(data, name, class_weight), name)


class Batches:
    """One data set, iterated batch by batch in the same order each time.

    Iterating yields `(x,)`, `(x, y)` or `(x, y, sample_weight)` of tensors.

    Args:
        name: the argument's name, for messages.
        sizes: number of examples in each batch.

    Attributes:
        n: number of examples.
    """

    def __init__(self, name, sizes):
        self._name = name
        self.n, self._count = sum(sizes), len(sizes)

    def __len__(self):
        """Number of batches."""
        return self._count

    def __iter__(self):
        raise NotImplementedError

    def sampler(self, batch_size, seed):
        """An endless iterator of random minibatches, without replacement within an epoch."""
        raise NotImplementedError

    def subset(self, indices):
        """The examples at these positions, in that order, as `ArrayBatches`."""
        indices = np.asarray(indices)
        wanted, start, parts = np.sort(indices), 0, []
        for batch in self:
            stop = start + _size(batch)
            rows = wanted[(wanted >= start) & (wanted < stop)] - start
            if rows.size:
                parts.append(tf.nest.map_structure(lambda t, rows=rows: tf.gather(t, rows), batch))
            start = stop
        whole = tf.nest.map_structure(lambda *t: tf.concat(t, 0), *parts)
        order = np.argsort(np.argsort(indices, kind="stable"), kind="stable")
        whole = tf.nest.map_structure(lambda t: tf.gather(t, order), whole)
        return ArrayBatches(whole, DEFAULT_BATCH_SIZE, self._name)

    def head(self, count):
        """The first `count` examples (fewer if the first batch is smaller), as one batch."""
        return _rows(next(iter(self)), slice(count))


class ArrayBatches(Batches):
    """Batches of tensors that are held in memory, cut once from one structure `whole`."""

    def __init__(self, whole, batch_size, name):
        whole = tf.nest.map_structure(tf.convert_to_tensor, whole)
        _check_batch(whole, name)
        n = _size(whole)
        sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
        # Most pieces of a split share the memory of the whole.
        leaves = [tf.split(leaf, sizes) for leaf in tf.nest.flatten(whole)]
        self._batches = [tf.nest.pack_sequence_as(whole, parts) for parts in zip(*leaves)]
        super().__init__(name, sizes)

    def __iter__(self):
        return iter(self._batches)

    def sampler(self, batch_size, seed):
        whole = tf.nest.map_structure(lambda *t: tf.concat(t, 0).numpy(), *self._batches)
        rng = np.random.default_rng(seed)
        order = np.empty(0, np.int64)
        while True:
            while len(order) < batch_size:
                order = np.concatenate([order, rng.permutation(self.n)])
            rows, order = order[:batch_size], order[batch_size:]
            yield tf.nest.map_structure(tf.convert_to_tensor, _rows(whole, rows))


class StreamBatches(Batches):
    """Batches of a dataset: one pass at a time, and each must repeat the first one.

    Args:
        epoch: a function that returns an iterator over one pass.
    """

    def __init__(self, epoch, name):
        self._epoch = epoch
        self._fingerprints = None
        first, sizes = [], []
        self._seen = first.append
        for batch in self:
            _check_batch(batch, name)
            sizes.append(_size(batch))
        if not sum(sizes):
            raise ValueError(f"`{name}` should have at least one example, but it is empty.")
        super().__init__(name, sizes)
        self._fingerprints, self._seen = first, lambda _: None

    def __iter__(self):
        count = 0
        for count, batch in enumerate(self._epoch(), 1):
            fingerprint = _fingerprint(batch)
            self._seen(fingerprint)
            self._compare(self._fingerprints, slice(count - 1, count), [fingerprint])
            yield batch
        self._compare(self._fingerprints, slice(count, None), [])

    def _compare(self, fingerprints, part, expected):
        if fingerprints is not None and fingerprints[part] != expected:
            raise ValueError(
                f"`{self._name}` gives other batches at each pass, so scores could not be told "
                "apart by position. Remove `.shuffle(...)` and random augmentation, or use "
                "`shuffle(..., reshuffle_each_iteration=False)`, or add `.cache()` at the end."
            )

    def sampler(self, batch_size, seed):
        spec = tf.nest.map_structure(_open_spec, self.head(1))
        examples = tf.data.Dataset.from_generator(self._epoch, output_signature=spec).unbatch()
        shuffled = examples.shuffle(min(self.n, _SHUFFLE_BUFFER), seed=seed).repeat()
        return iter(shuffled.batch(batch_size).prefetch(1))


def _rows(batch, rows):
    return tf.nest.map_structure(lambda t: t[rows], batch)


def _open_spec(tensor):
    return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)


def _whole(data, name, class_weight):
    """All of the data as arrays or tensors, cast as `model.fit` casts it."""
    if len(data) not in (1, 2, 3):
        raise ValueError(
            f"`{name}` should be (x, y) or (x, y, sample_weight). Received a tuple of {len(data)}"
        )
    for part, label in zip(data, ("x", "y", "sample_weight")):
        if part is None and label != "x":
            continue
        for leaf in tf.nest.flatten(part):
            if isinstance(leaf, (str, bytes)) or np.ndim(leaf) == 0:
                raise TypeError(
                    f"`{name}`: {label} should be made of arrays with one row per example. "
                    f"Received: {type(leaf).__name__}"
                )
    sizes = {int(np.shape(leaf)[0]) for leaf in tf.nest.flatten(data) if leaf is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` should have as many rows in x as in y and sample_weight. "
            f"Received lengths: {sorted(sizes)}"
        )
    if sizes == {0}:
        raise ValueError(f"`{name}` should have at least one example, but it is empty.")
    x, y, w = (*data, None, None)[:3]
    try:
        adapter = _keras.get_data_adapter(
            x=x, y=y, sample_weight=w, batch_size=max(sizes), class_weight=class_weight
        )
        leaves = [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
        if all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves):
            # The arrays that are in Keras's dataset, without the time it takes to build one.
            return next(iter(adapter.get_numpy_iterator()))
        return next(iter(adapter.get_tf_dataset()))
    except (ValueError, TypeError) as error:
        raise type(error)(f"`{name}` is not what Keras can read: {error}") from error


def _checked_dataset(data, name, class_weight):
    """A function that starts a pass over a `tf.data.Dataset`."""
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{name}` should be finite. Remove `.repeat()` or add `.take(...)`.")
    if any(s.shape.rank == 0 for s in tf.nest.flatten(data.element_spec)):
        raise ValueError(
            f"`{name}` should be batched: its elements are single examples. Add `.batch(256)`."
        )
    as_tuples = data if isinstance(data.element_spec, tuple) else data.map(lambda x: (x,))
    return _keras.get_data_adapter(as_tuples, class_weight=class_weight).get_tf_dataset().__iter__


def _checked_pydataset(data, name, class_weight):
    """A function that starts a pass over a `PyDataset`, whose workers have to be told."""
    if data.num_batches is None:
        raise ValueError(f"`{name}` should be finite. Received a PyDataset without a length.")

    def epoch():
        adapter = _keras.get_data_adapter(data, class_weight=class_weight)
        adapter.on_epoch_begin()
        try:
            yield from adapter.get_tf_dataset()
        finally:
            adapter.on_epoch_end()

    return epoch


def _check_batch(batch, name):
    leaves = tf.nest.flatten(batch)
    if len({int(t.shape[0]) for t in leaves}) > 1:
        raise ValueError(
            f"`{name}` should have as many rows in x as in y and sample_weight, but a batch has "
            f"shapes {[tuple(t.shape) for t in leaves]}. Is the dataset batched? (`.batch(256)`)"
        )
    for part, label in zip(batch, ("x", "y", "sample_weight")):
        for leaf in tf.nest.flatten(part):
            if leaf.dtype.is_floating and not _is_finite(leaf.numpy()):
                raise ValueError(f"`{name}` has NaN or infinite values in {label}.")


def _is_finite(array):
    """Whether all numbers are finite; the sum is quicker to look at, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum()) or np.isfinite(array).all())


def _fingerprint(batch):
    """A checksum of a sample of each tensor's columns: cheap, and it sees the order."""
    checksum = 0
    for leaf in tf.nest.flatten(batch):
        rows = leaf.numpy().reshape(_size(batch), -1)
        sample = np.ascontiguousarray(rows[:, :: max(1, rows.shape[1] // 16)])
        checksum = zlib.crc32(sample.tobytes(), checksum)
    return checksum
