"""Batches of a dataset that is read anew for each pass, which must be the same each time."""

import numpy as np
import tensorflow as tf

from keras_influence.checksums import quick_fingerprint
from keras_influence.engine.data import rows
from keras_influence.engine.data.checks import check_batch
from keras_influence.engine.data.held import SHUFFLE_BUFFER, Batches
from keras_influence.errors import see


class StreamBatches(Batches):
    """Batches of a dataset: one pass at a time, and each must repeat the first one.

    Args:
        epoch: a function that returns an iterator over one pass.

    Attributes:
        nbytes: bytes of all batches together.
    """

    def __init__(self, epoch, name):
        self._epoch, self._name = epoch, name
        sizes, prints, layouts = [], [], []
        start = self.nbytes = 0
        for batch in self._filled():
            check_batch(batch, name, start)
            sizes.append(rows.size(batch))
            prints.append(fingerprint(batch))
            layouts.append(rows.layout(batch))
            start += sizes[-1]
            self.nbytes += rows.nbytes(batch)
        if not sizes:
            raise ValueError(f"`{name}` should have at least one example, but it is empty.")
        self._fingerprints = prints
        super().__init__(name, sizes, layouts)

    def _kept(self):
        count = 0
        for count, batch in enumerate(self._filled(), 1):
            if self._fingerprints[count - 1 : count] != [fingerprint(batch)]:
                raise other_batches(self._name)
            yield batch
        if count < len(self):
            raise other_batches(self._name)

    def _filled(self):
        """One pass, less the batches without a row that a filter may leave."""
        for batch in self._epoch():
            batch = rows.dense(batch if isinstance(batch, tuple) else (batch,))
            # A batch whose parts differ in size is for the check to speak about.
            if any(t.shape[:1] != [0] for t in tf.nest.flatten(batch)):
                yield batch

    def _drawn_rows(self, batch_size, seed):
        spec = rows.open_spec(self.head(1))
        examples = tf.data.Dataset.from_generator(self._filled, output_signature=spec).unbatch()
        shuffled = examples.shuffle(min(self.n, SHUFFLE_BUFFER), seed=seed).repeat()
        return iter(shuffled.batch(batch_size).prefetch(1))


def fingerprint(batch):
    """A cheap checksum: of a sample of columns, which sees the order, and of all numbers' sum."""
    return quick_fingerprint(batch), [_total(np.asarray(t)) for t in tf.nest.flatten(batch)]


def _total(array):
    """The sum of a tensor's bits: far quicker than a checksum, and each number counts."""
    if array.dtype.hasobject:
        return sum(map(hash, array.ravel()))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = data.size // 8 * 8
    return int(data[:whole].view(np.uint64).sum()) + int(data[whole:].sum())


def other_batches(name):
    """The error about data that are not the same at each pass."""
    return ValueError(
        f"`{name}` gives other batches at each pass, so scores could not be told apart by position. "
        f"`keras_influence.in_order({name})` keeps one pass, in memory or in a file, in a fixed "
        "order. Or remove what is random: `.shuffle(...)` or its reshuffling "
        "(`reshuffle_each_iteration=False`), augmentation, a shuffle in a PyDataset's `on_epoch_end`. "
        f"{see('other-batches')}"
    )
