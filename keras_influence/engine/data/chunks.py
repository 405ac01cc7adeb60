"""Dask arrays and tables as chunks of rows, computed when they are asked for; Dask is imported only for them."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_influence.engine.data import sources
from keras_influence.engine.data.checks import PARTS


def holds_dask(data):
    """Whether something of Dask's is among the arrays of a tuple."""
    return any(_is_dask(leaf) for leaf in tf.nest.flatten(data))


@dataclasses.dataclass(frozen=True)
class Form:
    """How the arrays of a chunk make up data: what has to travel to where the chunk is.

    Attributes:
        skeleton: the structure of the user's tuple, with None where it has None.
        name: the argument's name, for messages.
        class_weight: as in `model.fit`.
    """

    skeleton: tuple
    name: str
    class_weight: dict | None

    def whole(self, arrays):
        """The chunk as tensors, cast as `model.fit` casts it."""
        found = iter(arrays)
        data = tf.nest.map_structure(lambda leaf: leaf and next(found), self.skeleton)
        return sources.whole_of(data, self.name, self.class_weight)


class Chunks:
    """A tuple of arrays, at least one of them Dask's, cut into chunks of rows.

    All are cut as the first Dask array among them is, the plain ones too. Dask's tables are
    the arrays of their columns, as pandas' are for Keras.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, nested structures too.
        name: the argument's name, for messages.
        class_weight: as in `model.fit`.

    Attributes:
        form: their `Form`.
        sizes: rows in each chunk, none of them empty.
        starts: the position of the first row of each.

    Raises:
        TypeError, ValueError: the chunks are not such that each has whole rows, known in number.
    """

    def __init__(self, data, name, class_weight=None):
        data = _without_tables(data)
        for part, label in zip(data, PARTS):
            for leaf in tf.nest.flatten(part):
                _check_chunks(leaf, f"{label} of `{name}`", label)
        sources.check_arrays(data, name)
        leaves = [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
        cut = next(leaf for leaf in leaves if _is_dask(leaf)).chunks[0]
        columns = [_cut(leaf, cut).to_delayed().ravel() for leaf in leaves]
        self._blocks = [list(row) for row, size in zip(zip(*columns), cut) if size]
        self.form = Form(
            tf.nest.map_structure(lambda leaf: None if leaf is None else True, data),
            name,
            class_weight,
        )
        self.sizes = [int(size) for size in cut if size]
        self.starts = np.cumsum([0, *self.sizes[:-1]])

    def tasks(self, function, arguments):
        """`function(arrays, *more)` as a task on each of some chunks, not computed yet.

        Args:
            function: can be imported from where it is.
            arguments: dict from the number of a chunk to what else it is given, a tuple.
        """
        import dask

        task = dask.delayed(function, pure=False)
        return [task(self._blocks[number], *more) for number, more in arguments.items()]


def _is_dask(leaf):
    # Until 2025 its tables were a package of their own.
    return type(leaf).__module__.partition(".")[0] in ("dask", "dask_expr")


def _is_table(leaf):
    return _is_dask(leaf) and hasattr(type(leaf), "to_dask_array")


def _without_tables(data):
    """A tuple with arrays in place of tables, whose lengths are counted in one pass together."""
    tables = [leaf for leaf in tf.nest.flatten(data) if _is_table(leaf)]
    if not tables:
        return data
    import dask

    lengths = iter(dask.compute(*(table.map_partitions(len) for table in tables)))
    return tf.nest.map_structure(
        lambda leaf: leaf.to_dask_array(lengths=tuple(next(lengths))) if _is_table(leaf) else leaf,
        data,
    )


def _check_chunks(leaf, what, label):
    if not _is_dask(leaf):
        return
    import dask.array as da

    if not isinstance(leaf, da.Array):
        raise TypeError(
            f"{what} should be a Dask array or table. Received: {type(leaf).__name__}, of which "
            "`dask.array.from_delayed` or `dask.dataframe.from_delayed` make one."
        )
    if not isinstance(leaf._meta, np.ndarray):
        raise TypeError(
            f"{what} should have chunks that are NumPy arrays. Received chunks of "
            f"{type(leaf._meta).__name__}: `{label}.map_blocks(...)` can turn them into such."
        )
    if leaf.ndim and np.isnan(leaf.chunks[0]).any():
        raise ValueError(
            f"{what} has chunks of unknown size, so that its examples have no positions. "
            f"`{label}.compute_chunk_sizes()` finds them out."
        )
    split = [axis for axis in range(1, leaf.ndim) if len(leaf.chunks[axis]) > 1]
    if split:
        whole = ", ".join(f"{axis}: -1" for axis in split)
        raise ValueError(
            f"{what} should be chunked along its first axis alone, so that each chunk has whole "
            f"examples. It is chunked along {split} too: `{label}.rechunk({{0: 'auto', {whole}}})`."
        )


def _cut(leaf, sizes):
    """An array in chunks of these sizes."""
    import dask.array as da

    if _is_dask(leaf):
        return leaf if leaf.chunks[0] == sizes else leaf.rechunk({0: sizes})
    # Any other way, Dask would make it a checksum of all that is in it.
    array = np.asarray(leaf)
    return da.from_array(array, chunks=(sizes, *array.shape[1:]), name=False)
