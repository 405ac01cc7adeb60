"""Batches of Dask arrays, read chunk by chunk: each must be the same at each pass."""

import numpy as np

from keras_influence.engine.data import rows
from keras_influence.engine.data.checks import check_batch
from keras_influence.engine.data.compute import all_of, one_by_one
from keras_influence.engine.data.held import DEFAULT_BATCH_SIZE, Batches, HeldBatches
from keras_influence.engine.data.stream import fingerprint, other_batches

# Places in the data that the rows of a random minibatch are taken from.
_WINDOWS = 4


class ChunkedBatches(Batches):
    """Batches of arrays in chunks, of which one is in memory at a time.

    No batch reaches into two chunks.

    Args:
        chunks: the `Chunks`.
        batch_size: examples in a batch, at most.
        fingerprints: of each chunk, if all of them have been checked.
    """

    def __init__(self, chunks, batch_size, fingerprints=None):
        self._chunks, self._batch_size, self._name = chunks, batch_size, chunks.form.name
        if fingerprints is None:
            asked = {i: (chunks.form, int(start)) for i, start in enumerate(chunks.starts)}
            fingerprints = list(all_of(chunks.tasks(_checked, asked)))
        self._fingerprints = fingerprints
        sizes = [len(part) for size in chunks.sizes for part in _parts(size, batch_size)]
        super().__init__(self._name, sizes, alike=True)

    def in_batches_of(self, batch_size):
        return ChunkedBatches(self._chunks, batch_size, self._fingerprints)

    def _kept(self):
        everything = dict.fromkeys(range(len(self._chunks.sizes)), (None,))
        for arrays in self._read(everything, one_by_one):
            # Nothing else holds the chunk while its last batch is worked on.
            whole = self._chunks.form.whole(arrays)
            del arrays
            parts = rows.split(whole, self._batch_size)
            del whole
            while parts:
                yield parts.pop(0)

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
        found = map(self._chunks.form.whole, self._read(asked, all_of))
        return rows.take(rows.joined(list(found)), np.argsort(order))

    def _read(self, asked, compute):
        """The arrays of some chunks, or some of their rows, each chunk held to its fingerprint."""
        results = compute(self._chunks.tasks(_rows_of, asked))
        for number, (found, arrays) in zip(asked, results):
            if found != self._fingerprints[number]:
                raise other_batches(self._name)
            yield arrays


def _parts(size, batch_size):
    return [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]


def _shares(count, parts):
    return [len(part) for part in np.array_split(np.arange(count), parts)]


# ---- what runs where a chunk is


def _checked(arrays, form, start):
    """The fingerprint of a chunk whose numbers are all right."""
    check_batch(form.whole(arrays), form.name, start)
    return fingerprint(arrays)


def _rows_of(arrays, positions):
    """The fingerprint of a chunk, and its rows at some positions, all if None."""
    some = arrays if positions is None else [array[positions] for array in arrays]
    return fingerprint(arrays), some
