"""A user's data as batches in a stable order, with the number of examples known."""

from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_influence.engine.data import checks, chunks, sources
from keras_influence.engine.data.chunked import ChunkedBatches
from keras_influence.engine.data.held import DEFAULT_BATCH_SIZE, HeldBatches
from keras_influence.engine.data.stream import StreamBatches
from keras_influence.validate import check_batch_size, check_class_weight

# A dataset of no more bytes is held in memory: to read it anew for each pass may take longer than
# the pass.
_SMALL = 2**26


def read(data, batch_size=None, name="train", class_weight=None):
    """A user's data as `Batches`.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` of arrays or tensors, nested
            structures too; a batched, finite `tf.data.Dataset`; or a
            `keras.utils.PyDataset`. Strings may be tensors, NumPy's or pandas'; sparse
            matrices and tensors are handed to the model dense, batch by batch. Dask arrays are
            read chunk by chunk.
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
        batch_size = int(batch_size or DEFAULT_BATCH_SIZE)
        if chunks.holds_dask(data):
            return ChunkedBatches(chunks.Chunks(data, name, class_weight), batch_size)
        whole = sources.whole_of(data, name, class_weight)
        checks.check_batch(whole, name, start=0)
        return HeldBatches([whole], name, whole).in_batches_of(batch_size)
    if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        raise TypeError(
            f"`{name}` should be a tuple (x, y) or (x, y, sample_weight), a batched "
            f"tf.data.Dataset or a keras.utils.PyDataset. Received: {type(data).__name__}."
            f"{_way_out(data)}"
        )
    if batch_size is not None:
        raise ValueError(
            f"`batch_size` should be left out when `{name}` is a dataset, which brings "
            f"its own batches. Received: batch_size={batch_size}"
        )
    stream = StreamBatches(sources.passes_of(data, name, class_weight), name)
    # What is held is a second pass, which has to be the first one again.
    return HeldBatches(list(stream), name) if stream.nbytes <= _SMALL else stream


def _way_out(data):
    """What makes data of what is none, as another sentence, or nothing."""
    if isinstance(data, list):
        return " Write (x, y) in place of [x, y]."
    if isinstance(data, Iterator):
        return " tf.data.Dataset.from_generator makes a dataset of a generator."
    return " Without labels, for a `target`, it is (x,)." if hasattr(data, "shape") else ""
