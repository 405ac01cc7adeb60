"""A layer's kernel as a matrix: the sums that its Kronecker factors are made of."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.moment import Moment
from keras_influence.engine.layers.part import EigenPart
from keras_influence.engine.layers.sites import Site
from keras_influence.engine.layers.tied import Reversed
from keras_influence.engine.layers.views import as_matrix
from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.rows import stacked
from keras_influence.linalg.factors.written import Formed, Sparse

# Numbers in the largest array that a sum makes: examples are taken so many at a time.
_NUMBERS = 2**24


class MatrixPart(EigenPart):
    """A layer's kernel as a matrix W (K, O), in the eigenbases of its two covariances.

    Args:
        layers: the layer of each call, in their order; they are one, or share the kernel.
        view: a `View` of the first one.
        parameters: θ.
        by_example: whether the first axis of its inputs seems to be that of the examples.
    """

    def __init__(self, layers, view, parameters, by_example):
        self.layers, self.by_example = tuple(layers), by_example
        self.weights = [view.kernel]
        if view.bias is not None and parameters.index(view.bias) is not None:
            self.weights.append(view.bias)
        self._positions = Positions.of(view.positions(parameters))
        # Beside other inputs, indices are unit vectors.
        self._spread = any(isinstance(layer, Reversed) for layer in self.layers)

    def raw(self, objective, signals):
        """Pairs of the input and δ of each call."""
        pairs = zip(signals.sites, signals.deltas)
        return [(site.inputs, delta) for site, delta in pairs if site.layer in self.layers]

    def rows(self, raw):
        """How many examples each call saw."""
        return [len(delta) for _, delta in raw]

    def moments(self, raw):
        """The `Moment` of a and that of δ, over examples and positions; none of indices."""
        height, width = self._positions.shape
        inputs, deltas = Moment(height), Moment(width)
        for a, delta in self._slices(raw):
            deltas.add(tf.reshape(delta, [-1, width]))
            if not a.dtype.is_integer:
                # An example without weight has no δ; its input should not count either.
                a = a * tf.cast(tf.reduce_any(delta != 0, 2, keepdims=True), a.dtype)
                inputs.add(tf.reshape(a, [-1, height]))
        return [inputs, deltas]

    def squares(self, raw, block):
        """[Σ over examples of (Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)²], as the eigenvalues."""
        total = 0.0
        for a, delta in self._slices(raw, self._positions.size):
            delta = _turned(delta, block.q_outputs)
            if a.dtype.is_integer:
                found = _square_of_indices(a, delta, self._positions.shape[0])
            else:
                a = _turned(a, block.q_inputs)
                if a.shape[1] == 1:
                    pair = tf.square(a[:, 0]), tf.square(delta[:, 0])
                    found = tf.matmul(*pair, transpose_a=True)
                else:
                    found = tf.reduce_sum(tf.square(tf.matmul(a, delta, transpose_a=True)), 0)
            total = total + found.numpy()
        return [total]

    def coordinates(self, raw, block, chosen):
        """Entries of Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S of each example, (len(chosen), b)."""
        rows, columns = np.divmod(chosen, block.eigenvalues.shape[1])
        # Few columns of the bases have a part in what is chosen: nothing is turned into the others.
        rows, row_of = np.unique(rows, return_inverse=True)
        columns, column_of = np.unique(columns, return_inverse=True)
        found = []
        for a, delta in self._slices(raw, len(rows) * len(columns), len(chosen) * 3):
            delta = _turned_into(delta, block.q_outputs, columns)
            if a.dtype.is_integer:
                a = tf.cast(a[..., None] == tf.constant(rows, a.dtype), delta.dtype)
            else:
                a = _turned_into(a, block.q_inputs, rows)
            if a.shape[1] == 1:
                pair = tf.transpose(a[:, 0]), tf.transpose(delta[:, 0])
                entries = tf.gather(pair[0], row_of) * tf.gather(pair[1], column_of)
            else:
                pairs = tf.matmul(a, delta, transpose_a=True)
                pairs = tf.transpose(tf.reshape(pairs, [-1, len(rows) * len(columns)]))
                entries = tf.gather(pairs, row_of * len(columns) + column_of)
            found.append(entries.numpy())
        return np.concatenate(found, axis=1)

    def contributions(self, raw):
        """Each example's Σ_t a_t δ_tᵀ, as `Rows`."""
        height, width = self._positions.shape
        # As a layer's output tells, not the number of positions, which may change from batch to batch.
        outer, found = len(raw) == 1 and raw[0][1].shape.rank == 2, []
        for a, delta in self._slices(raw, height * width):
            if a.dtype.is_integer:
                found.append(_indexed(self._positions, a.numpy(), delta.numpy()))
            elif outer:
                found.append(Outer(self._positions, a[:, 0].numpy(), delta[:, 0].numpy()))
            else:
                formed = tf.matmul(a, delta, transpose_a=True).numpy()
                found.append(Formed(self._positions.flat, formed.reshape(len(formed), -1)))
        return stacked(found)

    def _slices(self, raw, formed=0, each=0):
        """a (b, T, K), or indices (b, T), and δ (b, T, O), for some of the examples at a time.

        The calls of a layer that is called more than once stand side by side.

        Args:
            formed: numbers that are made for each example that has several positions.
            each: those for each in any case, besides a and δ.
        """
        height, width = self._positions.shape
        calls = [(layer, *pair) for layer, pair in zip(self.layers, raw)]
        count = int(raw[0][1].shape[0])
        positions = sum(_positions_in(*call, width) for call in calls)
        each += positions * (height + width) + (formed if positions > 1 else 0)
        step = max(1, _NUMBERS // max(each, 1))
        for start in range(0, count, step):
            some, found = slice(start, start + step), []
            for layer, a, delta in calls:
                # A slice that is all of a tensor would still take a millisecond.
                a, delta = (a, delta) if step >= count else (a[some], delta[some])
                view = as_matrix(Site(layer, (a,), {}, None))
                found.append(view.signals(delta, height, self._spread))
            yield found[0] if len(found) == 1 else tuple(tf.concat(c, 1) for c in zip(*found))


def _positions_in(layer, a, delta, width):
    """How many positions an example has in a call."""
    numbers = a if isinstance(layer, Reversed) else delta
    return int(np.prod(numbers.shape[1:])) // max(width, 1)


def _indexed(positions, indices, delta):
    """Rows Σ_t a_t δ_tᵀ with a_t the unit vectors of (b, T) indices."""
    count, width = len(delta), positions.shape[1]
    columns = indices[..., None] * width + np.arange(width)
    ends = np.arange(count + 1) * (columns.size // max(count, 1))
    return Sparse(positions.flat, delta.ravel(), columns.ravel(), ends)


def _turned(t, basis):
    return t @ tf.cast(basis, t.dtype) if basis.size else t


def _turned_into(t, basis, chosen):
    return _turned(t, basis[:, chosen]) if basis.size else tf.gather(t, chosen, axis=2)


def _square_of_indices(indices, delta, height):
    """Σ over examples of squares where a_t is the unit vector of an index: equal ones add up."""
    example = tf.range(tf.shape(indices)[0])[:, None]
    keys, places = tf.unique(tf.reshape(example * height + indices, [-1]))
    flat = tf.reshape(delta, [-1, delta.shape[2]])
    sums = tf.math.unsorted_segment_sum(flat, places, tf.size(keys))
    return tf.math.unsorted_segment_sum(tf.square(sums), keys % height, height)
