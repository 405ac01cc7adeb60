"""Weights in no layer that is covered: the diagonal of the matrix."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.part import Part
from keras_influence.linalg.factors.blocks import Channels
from keras_influence.linalg.factors.positions import Positions


class RestPart(Part):
    """Weights in no layer that is covered: the diagonal.

    A batch's pseudo-gradient has random signs, so that its square has the sum of the examples'
    squares for its mean.

    Args:
        variables: the weights.
        parameters: θ.
        silent: whether the outputs do not depend on them.
    """

    name = "weights in no layer that is covered"

    def __init__(self, variables, parameters, silent):
        self.silent = silent
        self._places = [parameters.index(v) for v in variables]
        self._shapes = [v.shape for v in variables]
        positions = [parameters.positions(v).ravel() for v in variables]
        self._positions = Positions.of(np.concatenate(positions)[:, None])

    def raw(self, objective, signals):
        """The batch's gradient, [(r,)]."""
        found = [signals.gradients[i] for i in self._places]
        dense = [
            tf.zeros(shape, signals.miss.dtype) if g is None else tf.convert_to_tensor(g)
            for g, shape in zip(found, self._shapes)
        ]
        return [tf.concat([tf.reshape(g, [-1]) for g in dense], 0)]

    def rows(self, raw):
        """None: it sees the batch as a whole."""
        return []

    def moments(self, raw):
        """[g²], (r,)."""
        return [np.square(raw[0].numpy())]

    def settled(self, moments, per_example):
        """The `Channels` of one weight each."""
        values = moments[0][:, None] * per_example
        ones = np.ones((*values.shape, 1), values.dtype)
        return Channels(self.name, self._positions, ones, values, by_example=False, outside=True)
