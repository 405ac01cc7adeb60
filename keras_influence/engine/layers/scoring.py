"""Gradients of single examples and their products with vectors, by the fastest way that is right.

The contraction of layer inputs with output gradients is fast, and wrong where a layer's call is
not all that its weights do: tied weights, a batch axis folded into another. So every batch it is
used on is certified by an identity that needs no belief (`identity`). A batch that fails it, and all
after it, are taken by the plain way, a second backward pass for each vector.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import split
from keras_influence.engine.kernels.loops import RECURRENT, work_alone
from keras_influence.engine.layers.contraction import VECTORS, Contraction
from keras_influence.engine.layers.finite import refuse_bad
from keras_influence.engine.layers.identity import Identity, weighted_gradient
from keras_influence.engine.loss.refusals import computing

# Bytes that a kernel's arrays may take besides the layers' inputs, and examples at least.
_BYTES, _FEWEST = 2**28, 16
# Scores may come from a kernel that is there for something else. From that of example gradients, of
# a batch with no more numbers in them than this; from that of products for so few vectors and batches:
# more are worth a kernel of their own.
_FORMED = 2**22
_FEW, _BATCHES = 16, 4
# Of so many weights, for which scores seldom come from that of example gradients, so few of these are had
# without it.
_LARGE, _ALONE = 2**18, 8


class Scorer:
    """Example gradients and scores of one model on one data set, certified batch by batch.

    Args:
        objective: an `Objective`.
        weight: the `Weighting` of what the examples contribute.
        name: what the data are called in messages.
        vectors: (k, p) that `scores` is to be against, if it is asked.
        start: position of the first example that it is given, for messages.

    Attributes:
        fast: whether the contraction has been right on every batch so far.
    """

    def __init__(self, objective, weight, name, vectors=None, start=0):
        self._objective, self._weight, self._name = objective, weight, name
        self._contraction = objective.made(Contraction)
        self.fast = self._contraction.covers
        self._identity = Identity(objective, weight, name)
        self._start, self._vectors = start, vectors
        if vectors is not None:
            self._borrows = len(vectors) <= VECTORS
            few = len(vectors) <= _FEW and work_alone(objective.model()) == RECURRENT
            self._by_products = _BATCHES if few else 0

    def _blocks(self):
        """The vectors, so many at a time."""
        starts = range(0, len(self._vectors), VECTORS)
        return [tf.convert_to_tensor(self._vectors[i : i + VECTORS]) for i in starts]

    def gradients(self, batch):
        """∇ of each example of the batch, (b, p)."""
        with computing(self._name):
            return self._gradients(batch)

    def _gradients(self, batch):
        alone = self._are_few_of_many(batch)
        rows = self._one_by_one(batch) if alone else self._contracted(batch)
        if rows is None:
            rows = self._objective.example_gradients(batch, self._weight).numpy()
        self._check(rows, batch)
        return rows

    def _contracted(self, batch):
        """Them by the contraction; None where it is not right."""
        if not self.fast:
            return None
        self._look_at(batch)
        rows = self._try(self._contraction.example_gradients, batch)
        if rows is not None:
            self.fast = self._certified(batch, rows @ self._identity.s)
        return rows if self.fast else None

    def _one_by_one(self, batch):
        """Them, each of the first of a pair of itself: a batch of one is a special case in too many places."""
        about = self._objective, self._weight, batch
        pairs = ([i, i] for i in range(size_of(batch)))
        return np.stack([weighted_gradient(*about, pair, [1.0, 0.0]) for pair in pairs])

    def _are_few_of_many(self, batch):
        """Whether these are a few gradients of many numbers, which are not worth a kernel of their own."""
        kernels, kernel = self._contraction.kernels, self._contraction.example_gradients
        large = self._objective.parameters.size >= _LARGE
        few = size_of(batch) <= _ALONE and not self._objective.adds_by_example
        return large and few and not kernels.has_traced(kernel, batch, many=False)

    def scores(self, batch):
        """⟨∇_j, s⟩ for each example j and each of the vectors, list of (b, k) for the blocks."""
        with computing(self._name):
            if self.fast or self._borrows:
                self._look_at(batch)
            found = [self._scores(part) for part in self._parts(batch)]
        return found[0] if len(found) == 1 else [np.concatenate(block) for block in zip(*found)]

    def _parts(self, batch):
        """The batch in pieces whose arrays fit into memory."""
        if not self.fast:
            return [batch]
        each = self._contraction.numbers() * self._objective.parameters.dtype.size
        count = size_of(batch)
        pieces = -(-count // max(_FEWEST, _BYTES // max(each, 1)))
        # As large as each other: none is left with a single example.
        return [batch] if pieces == 1 else split(batch, -(-count // pieces))

    def _scores(self, batch):
        values = self._from_others(batch) if self._borrows else None
        if values is not None:
            return values
        if self.fast:
            kernel = self._contraction.scores
            values = self._try(lambda *a: [kernel(*a, block) for block in self._probed], batch)
        if values is not None:
            values = [part.numpy() for part in values]
            first, probed = values[0][:, :-1], values[0][:, -1]
            self.fast = self._certified(batch, probed)
            values[0] = first
        if not self.fast:
            kernel = self._objective.scores
            values = [kernel(batch, self._weight, block).numpy() for block in self._blocks()]
        self._check(values[0], batch)
        return values

    def _from_others(self, batch):
        """What a kernel gives that is there for something else, where none is for scores; or None.

        To trace one takes longer than what is left out there.
        """
        objective, fast = self._objective, self._contraction
        known = objective.kernels.has_traced(objective.scores, batch)
        if known or (self.fast and fast.kernels.has_traced(fast.scores, batch)):
            return None
        found = self._from_gradients(batch)
        if found is None and self._by_products:
            self._by_products -= 1
            found = self._from_products(batch)
        if found is None or not self._certified(batch, found[-1]):
            self._borrows = False
            return None
        self._check(found[:-1].T, batch)
        return [found[:-1].T]

    def _from_gradients(self, batch):
        """⟨s, ∇_j⟩ for each of the vectors, the identity's with them, by example gradients; or None."""
        fast, size = self._contraction, self._objective.parameters.size
        small = self.fast and size_of(batch) * size <= _FORMED
        if not (small and fast.kernels.has_traced(fast.example_gradients, batch, many=False)):
            return None
        rows = self._try(fast.example_gradients, batch)
        if rows is None:
            return None
        return tf.matmul(self._probed[0], rows, transpose_b=True).numpy()

    def _from_products(self, batch):
        """The same by what the kernel of products gives on the way; or None."""
        objective, vectors = self._objective, self._probed[0]
        kernel = objective.products_and_scores
        if objective.kernels.has_traced(kernel, batch):
            return kernel(batch, self._weight, vectors)[1].numpy()
        if objective.kernels.has_traced(kernel, batch, many=False):
            found = [kernel(batch, self._weight, v[None])[1].numpy() for v in vectors]
            return np.concatenate(found)
        return None

    def _try(self, kernel, batch):
        """What the contraction gives; None where it cannot be traced, or has no row an example."""
        try:
            found = kernel(batch, self._weight)
        except (ValueError, TypeError, LookupError, tf.errors.OpError):
            found = None
        blocks = found if isinstance(found, list) else [found]
        # A single number is what comes of no layer at all, as where all are quantised.
        if found is None or any(b.shape[:1] != (size_of(batch),) for b in blocks):
            self.fast = False
            return None
        return found if isinstance(found, list) else found.numpy()

    def _look_at(self, first):
        """Draw the s of the identity, on the first batch that it is asked of."""
        if self._identity.s is not None:
            return
        self._identity.draw(first, self._start)
        if self._vectors is not None:
            first, *others = self._blocks()
            # With the others goes this one, through the very kernel that takes them.
            self._probed = [tf.concat([first, self._identity.s[None]], 0), *others]

    def _certified(self, batch, paired):
        """Whether the identity holds for what a kernel gave, paired with its s."""
        return self._identity.holds(batch, paired, self._start)

    def _check(self, rows, batch):
        refuse_bad(rows, self._start, self._name)
        self._start += size_of(batch)
