"""Data as batches in a stable order: what all forms have in common, and those held in memory."""

import itertools

import numpy as np

from keras_influence.engine.data import rows

DEFAULT_BATCH_SIZE = 256
# Examples that are held to draw the next minibatch of a stream from.
SHUFFLE_BUFFER = 50_000


class Batches:
    """One data set, iterated batch by batch in the same order each time.

    Iterating yields `(x,)`, `(x, y)` or `(x, y, sample_weight)` of dense tensors. No batch is
    empty; the shape of a row may differ between batches, as it does after `padded_batch`.

    Args:
        name: the argument's name, for messages.
        sizes: number of examples in each batch.
        layouts: of each batch, what `rows.layout` says of it.

    Attributes:
        n: number of examples.
        largest: of them in a batch.
        alike: whether rows have the same shape in all batches.
    """

    def __init__(self, name, sizes, layouts):
        self._name, self._sizes, self._layouts = name, sizes, layouts
        self.alike = len(set(layouts)) == 1
        self.n, self.largest = sum(sizes), max(sizes, default=0)

    def __len__(self):
        """Number of batches."""
        return len(self._sizes)

    def __iter__(self):
        return map(rows.dense, self._kept())

    def _kept(self):
        """An iterator over the batches as they are kept, where sparse tensors may be sparse."""
        raise NotImplementedError

    def enumerated(self):
        """The batches, each with the slice of positions that its examples have: `(slice, batch)`."""
        return _enumerated(self)

    def head(self, count):
        """The first `count` examples as one batch; fewer only where rows change their shape."""
        parts, missing = [], count
        for batch in self._kept():
            if parts and rows.layout(batch) != rows.layout(parts[0]):
                break
            parts.append(rows.take(batch, np.arange(min(missing, rows.size(batch)))))
            missing -= rows.size(parts[-1])
            if not missing:
                break
        return rows.dense(rows.joined(parts))

    def in_batches_of(self, batch_size):
        """The same in batches of another size, where they are not the user's."""
        return self

    def joined(self, most, like):
        """The same with neighbours as one batch, where the user's are smaller.

        Args:
            most: up to so many examples.
            like: the layout of these. Of rows that are wider, as longer sequences are, fewer are joined: what a
                network makes of them may grow by the square.
        """
        groups, fitting = [[0, 0]], {}
        for layout in set(self._layouts):
            fitting[layout] = most / max(1.0, rows.times_as_wide(layout, like)) ** 2
        for size, layout, before in zip(self._sizes, self._layouts, [None, *self._layouts]):
            if groups[-1][1] and (layout != before or groups[-1][1] + size > fitting[layout]):
                groups.append([0, 0])
            groups[-1][0] += 1
            groups[-1][1] += size
        return self if len(groups) >= len(self) else JoinedBatches(self, [g[0] for g in groups])

    def subset(self, indices):
        """The examples at these positions, in that order, as `Batches` held in memory.

        Neighbours of different shapes stay in batches of their own.
        """
        indices = np.asarray(indices)
        asked = np.argsort(indices, kind="stable")
        wanted = indices[asked]
        found = []
        for where, batch in _enumerated(self._kept()):
            here = slice(*np.searchsorted(wanted, (where.start, where.stop)))
            if here.start < here.stop:
                found.append((asked[here], rows.take(batch, wanted[here] - where.start)))
        wholes = _in_order(found)
        batches = [b for whole in wholes for b in rows.split(whole, DEFAULT_BATCH_SIZE)]
        return HeldBatches(batches, self._name, wholes[0] if len(wholes) == 1 else None)

    def sampler(self, batch_size, seed):
        """An endless iterator of random minibatches, in which each example is as likely as any.

        Without replacement within an epoch. Where batches cannot be joined, a minibatch is part
        of one batch, drawn in proportion to its size, and may be smaller than `batch_size`.
        """
        drawn = self._drawn_rows if self.alike else self._drawn_batches
        return drawn(batch_size, seed)

    def _drawn_rows(self, batch_size, seed):
        raise NotImplementedError

    def _drawn_batches(self, batch_size, seed):
        rng = np.random.default_rng(seed)
        share = np.array(self._sizes) / self.n
        most = min(len(self), max(1, SHUFFLE_BUFFER // batch_size))
        waiting = []
        while True:
            # Drawn ahead for one pass; how often is what independent draws would give.
            for times, batch in zip(rng.multinomial(len(self), share), self._kept()):
                for _ in range(times):
                    some = rng.permutation(rows.size(batch))[:batch_size]
                    waiting.append(rows.dense(rows.take(batch, some)))
                    if len(waiting) >= most:
                        yield waiting.pop(rng.integers(len(waiting)))


class JoinedBatches(Batches):
    """Batches that are made of neighbours among others.

    Args:
        batches: the `Batches` that these are made of.
        counts: of how many each is.
    """

    def __init__(self, batches, counts):
        self._batches, self._counts = batches, counts
        starts = np.cumsum([0, *counts[:-1]])
        sizes = np.add.reduceat(batches._sizes, starts).tolist()
        super().__init__(batches._name, sizes, [batches._layouts[i] for i in starts])

    def _kept(self):
        kept = self._batches._kept()
        for count in self._counts:
            yield rows.joined(list(itertools.islice(kept, count)))
        # Whether there is another one is for the others to say.
        next(kept, None)

    def sampler(self, batch_size, seed):
        return self._batches.sampler(batch_size, seed)


class HeldBatches(Batches):
    """Batches that are held in memory.

    Args:
        batches: list of structures of tensors.
        whole: the same as one batch, if they may be cut anew.
    """

    def __init__(self, batches, name, whole=None):
        self._batches, self._whole = batches, whole
        super().__init__(name, [*map(rows.size, batches)], [*map(rows.layout, batches)])

    def _kept(self):
        return iter(self._batches)

    def in_batches_of(self, batch_size):
        if self._whole is None:
            return self
        return HeldBatches(rows.split(self._whole, batch_size), self._name, self._whole)

    def joined(self, most, like):
        found = super().joined(most, like)
        # Once, not at each pass.
        return found if found is self else HeldBatches(list(found._kept()), self._name)

    def _drawn_rows(self, batch_size, seed):
        whole = rows.joined(self._batches)
        rng = np.random.default_rng(seed)
        order = np.empty(0, np.int64)
        while True:
            while len(order) < batch_size:
                order = np.concatenate([order, rng.permutation(self.n)])
            some, order = order[:batch_size], order[batch_size:]
            yield rows.dense(rows.take(whole, some))


def _enumerated(batches):
    start = 0
    for batch in batches:
        stop = start + rows.size(batch)
        yield slice(start, stop), batch
        start = stop


def _in_order(found):
    """The rows of `found`, a list of (places, rows), each at its place: a list of batches.

    Rows are joined as far as neighbours have the same shape.
    """
    groups = {}
    for places, batch in found:
        groups.setdefault(rows.layout(batch), []).append((places, batch))
    count = sum(len(places) for places, _ in found)
    if not count:
        return []
    group_at, row_at, wholes = np.empty(count, int), np.empty(count, int), []
    for group in groups.values():
        places = np.concatenate([places for places, _ in group])
        group_at[places], row_at[places] = len(wholes), np.arange(len(places))
        wholes.append(rows.joined([batch for _, batch in group]))
    changes = np.flatnonzero(np.diff(group_at)) + 1
    runs = zip(np.split(group_at, changes), np.split(row_at, changes))
    return [rows.take(wholes[which[0]], some) for which, some in runs]
