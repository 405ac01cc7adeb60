"""Batches of Dask arrays, read chunk by chunk: each must be the same at each pass."""

import dataclasses

import numpy as np

from keras_influence.engine.data import rows
from keras_influence.engine.data.checks import check_batch
from keras_influence.engine.data.chunks import Form
from keras_influence.engine.data.compute import all_of, one_by_one
from keras_influence.engine.data.held import DEFAULT_BATCH_SIZE, Batches, HeldBatches
from keras_influence.engine.data.stream import fingerprint, other_batches

# Places in the data that the rows of a random minibatch are taken from.
_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a chunk stands in the data, and how it is cut: it can travel to where the chunk is.

    Attributes:
        form: the `Form` of the data.
        fingerprint: of the chunk.
        start: the position of its first example.
        number: of its first batch.
        batch_size: examples in a batch, at most.
    """

    form: Form
    fingerprint: tuple
    start: int
    number: int
    batch_size: int

    def batches(self, arrays):
        """The chunk's batches.

        Raises:
            ValueError: it is not what it was.
        """
        self.check(fingerprint(arrays))
        parts = rows.split(self.form.whole(arrays), self.batch_size)
        # Nothing else holds the chunk while its last batch is worked on.
        del arrays
        while parts:
            yield rows.dense(parts.pop(0))

    def check(self, found):
        """Raise unless a fingerprint is that of the chunk."""
        if found != self.fingerprint:
            raise other_batches(self.form.name)


class ChunkedBatches(Batches):
    """Batches of arrays in chunks, of which one is in memory at a time.

    No batch reaches into two chunks.

    Args:
        chunks: the `Chunks`.
        batch_size: examples in a batch, at most.
        fingerprints: of each chunk, if all of them have been checked.

    Attributes:
        places: the `Place` of each chunk.
    """

    def __init__(self, chunks, batch_size, fingerprints=None):
        self._chunks, self._batch_size, self._name = chunks, batch_size, chunks.form.name
        if fingerprints is None:
            asked = {i: (chunks.form, int(start)) for i, start in enumerate(chunks.starts)}
            fingerprints = list(all_of(chunks.tasks(_checked, asked)))
        self._fingerprints = fingerprints
        counts = [-(-size // batch_size) for size in chunks.sizes]
        about = zip(fingerprints, chunks.starts, np.cumsum([0, *counts[:-1]]))
        self.places = [
            Place(chunks.form, found, int(start), int(number), batch_size)
            for found, start, number in about
        ]
        sizes = [len(part) for size in chunks.sizes for part in _parts(size, batch_size)]
        super().__init__(self._name, sizes, [None] * len(sizes))

    def in_batches_of(self, batch_size):
        return ChunkedBatches(self._chunks, batch_size, self._fingerprints)

    def joined(self, most, like):
        return self

    def tasks(self, function, *values):
        """`function(arrays, place, *values)` on each chunk, as tasks of Dask's."""
        asked = {i: (place, *values) for i, place in enumerate(self.places)}
        return self._chunks.tasks(function, asked)

    def chunk_by_chunk(self):
        """The place and the batches of each chunk, which is read when it is its turn."""
        found = one_by_one(self.tasks(_itself))
        for place in self.places:
            yield place, place.batches(next(found))

    def _kept(self):
        for _, batches in self.chunk_by_chunk():
            yield from batches

    def head(self, count):
        return rows.dense(self._taken(np.arange(min(count, self.n))))

    def subset(self, indices):
        indices = np.asarray(indices)
        if not len(indices):
            return HeldBatches([], self._name)
        return HeldBatches(rows.split(self._taken(indices), DEFAULT_BATCH_SIZE), self._name)

    def _drawn_rows(self, batch_size, seed):
        """Each from a few windows along the data, at even distances from a random start.

        So each example is as likely as any other whatever the chunks' sizes are, and only a
        few chunks are read. Within a chunk it is chance which of its rows stand for a window.
        """
        rng = np.random.default_rng(seed)
        count = min(batch_size, self.n)
        windows = min(_WINDOWS, len(self._chunks.sizes), count)
        # Cut alike, so that no window is longer than the way to the next one.
        lengths, ways = _shares(count, windows), _shares(self.n, windows)
        starts = np.cumsum([0, *ways[:-1]])
        places = np.concatenate([s + np.arange(length) for s, length in zip(starts, lengths)])
        while True:
            drawn = np.sort((places + rng.integers(self.n)) % self.n)
            for number, edges in self._found(drawn).items():
                size, some = self._chunks.sizes[number], edges.stop - edges.start
                here = rng.choice(size, some, replace=False, shuffle=False)
                drawn[edges] = self._chunks.starts[number] + np.sort(here)
            yield rows.dense(self._taken(drawn))

    def _found(self, positions):
        """Where in these sorted positions each chunk stands that has some of them."""
        edges = np.searchsorted(positions, [*self._chunks.starts, self.n])
        return {i: slice(a, b) for i, (a, b) in enumerate(zip(edges, edges[1:])) if a < b}

    def _taken(self, positions):
        """The examples at these positions, in that order, as one batch."""
        order = np.argsort(positions, kind="stable")
        wanted = positions[order]
        asked = {
            number: (wanted[edges] - self._chunks.starts[number],)
            for number, edges in self._found(wanted).items()
        }
        parts = []
        for number, (found, arrays) in zip(asked, all_of(self._chunks.tasks(_rows_of, asked))):
            self.places[number].check(found)
            parts.append(self._chunks.form.whole(arrays))
        return rows.take(rows.joined(parts), np.argsort(order))


def _parts(size, batch_size):
    return [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]


def _shares(count, parts):
    return [len(part) for part in np.array_split(np.arange(count), parts)]


# ---- what runs where a chunk is


def _checked(arrays, form, start):
    """The fingerprint of a chunk whose numbers are all right."""
    check_batch(form.whole(arrays), form.name, start)
    return fingerprint(arrays)


def _itself(arrays, place):
    return arrays


def _rows_of(arrays, positions):
    """The fingerprint of a chunk, and its rows at some positions."""
    return fingerprint(arrays), [array[positions] for array in arrays]
