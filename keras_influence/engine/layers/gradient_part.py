"""A layer's own weights as a matrix, with Kronecker factors of the examples' gradients themselves."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers import own
from keras_influence.engine.layers.gradients import weight_gradients
from keras_influence.engine.layers.moment import Moment
from keras_influence.engine.layers.part import EigenPart
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.written import Formed

# The axes of (b, K, O) with that of a side last.
_ORDERS = [0, 2, 1], [0, 1, 2]


class GradientPart(EigenPart):
    """Weights of an `Own` whose last axes are as long as each other: the rows of a matrix (K, O).

    With Gᵢ the gradients of single examples its bases are those of E[G Gᵀ] and E[Gᵀ G], which for a
    dense layer are nearly the covariances of its inputs and of its δ. A vector's block is exact.

    Args:
        layer: an `Own`.
        weights: the variables, in θ.
        parameters: θ.
    """

    rows_are_examples = by_example = True

    def __init__(self, layer, weights, parameters):
        self.layers, self.weights = (layer,), weights
        rows = [_as_rows(parameters.positions(v), v) for v in weights]
        self._positions = Positions.of(np.concatenate(rows))

    def raw(self, objective, signals):
        """Each example's gradient, (b, K, O), summed over the calls; and how many rows all had."""
        pairs = zip(signals.sites, signals.deltas)
        calls = [(site, delta) for site, delta in pairs if site.layer in self.layers]
        counts = tf.concat([own.counts(*call) for call in calls], 0)
        return [tf.add_n([self._gradients(objective, *call) for call in calls]), counts]

    def _gradients(self, objective, site, delta):
        found = weight_gradients(objective, site, delta, self.weights)
        rows = [_as_rows(gradient, v) for gradient, v in zip(found, self.weights)]
        return tf.concat(rows, axis=-2)

    def rows(self, raw):
        """How many rows each input and δ had."""
        return [int(count) for count in raw[1]]

    def moments(self, raw):
        """The `Moment` of the columns of G and that of its rows."""
        g, found = raw[0], [Moment(side) for side in self._positions.shape]
        for moment, order, side in zip(found, _ORDERS, self._positions.shape):
            moment.add(tf.reshape(tf.transpose(g, order), [-1, side]))
        return found

    def squares(self, raw, block):
        """[Σ over examples of (Q_Aᵀ G Q_S)²], as the eigenvalues."""
        return [tf.reduce_sum(tf.square(_turned(raw[0], block)), 0).numpy()]

    def coordinates(self, raw, block, chosen):
        """Entries of Q_Aᵀ G Q_S of each example, (len(chosen), b)."""
        turned = _turned(raw[0], block).numpy()
        return turned.reshape(len(turned), -1)[:, chosen].T

    def contributions(self, raw):
        """Each example's gradient, as `Rows`."""
        gradients = raw[0].numpy()
        return Formed(self._positions.flat, gradients.reshape(len(gradients), -1))


def _as_rows(array, variable):
    """(..., *shape) as (..., K, O), with O the last axis of the shape, or 1 of a scalar."""
    shape = tuple(variable.shape) or (1,)
    library = np if isinstance(array, np.ndarray) else tf
    lead = list(array.shape)[: len(array.shape) - len(variable.shape)]
    front = [-1] if lead else []
    return library.reshape(array, [*front, int(np.prod(shape[:-1])), shape[-1]])


def _turned(g, block):
    if block.q_inputs.size:
        g = tf.matmul(tf.cast(block.q_inputs, g.dtype), g, transpose_a=True)
    return tf.matmul(g, tf.cast(block.q_outputs, g.dtype)) if block.q_outputs.size else g
