"""Weights that act on one channel or unit each, with a small block for each; see `channels`."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.part import Part
from keras_influence.linalg.factors.blocks import Channels
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.written import Formed


class ChannelPart(Part):
    """A layer's weights that fall into channels, with an exact block for each.

    Args:
        layer: the layer.
        split: a `Split` of them.
        parameters: θ.
        by_example: whether the first axis of its inputs seems to be that of the examples.
    """

    def __init__(self, layer, split, parameters, by_example):
        self.layers, self._split, self.by_example = (layer,), split, by_example
        self._positions = Positions.of(split.positions(parameters))

    def raw(self, objective, signals):
        """Weight gradients of each example by each call, (b, m, w)."""
        pairs = zip(signals.sites, signals.deltas)
        return [
            self._split.gradients(objective, site, delta)
            for site, delta in pairs
            if site.layer in self.layers
        ]

    def rows(self, raw):
        """How many examples each call saw."""
        return [len(gradients) for gradients in raw]

    def moments(self, raw):
        """[Σ g gᵀ of each channel], (m, w, w)."""
        g = tf.transpose(tf.add_n(raw), [1, 2, 0])
        return [tf.matmul(g, g, transpose_b=True).numpy()]

    def settled(self, moments, per_example):
        """The `Channels`, known from the moments alone."""
        (moment,) = moments
        # Not in half precision, which LAPACK does not know.
        moment = moment.astype(np.result_type(moment, np.float32), copy=False)
        values, vectors = np.linalg.eigh((moment + np.swapaxes(moment, 1, 2)) / 2 * per_example)
        return Channels(self.name, self._positions, vectors, np.maximum(values, 0))

    def coordinates(self, raw, block, chosen):
        """Entries of the gradients in the eigenvectors, of each example, (len(chosen), b)."""
        turned = block.turned(tf.add_n(raw).numpy())
        return turned.reshape(len(turned), -1)[:, chosen].T

    def contributions(self, raw):
        """Each example's gradient, as `Rows`."""
        gradients = tf.add_n(raw).numpy()
        return Formed(self._positions.flat, gradients.reshape(len(gradients), -1))
