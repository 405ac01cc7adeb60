"""Weights that act on one channel or unit each: their gradients side by side, example by example.

A depthwise convolution, a normalisation's scale and offset, a bias that is no row of a kernel:
what such weights add to the Gauss-Newton matrix is close to one small block for each channel.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.gradients import weight_gradients
from keras_influence.engine.layers.recurrent import Offsets

layers = keras.layers
_NORMALISATIONS = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    *([layers.RMSNormalization] if hasattr(layers, "RMSNormalization") else []),
)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
# Blocks of more weights than this are too large to be kept, one for each channel.
_WIDEST = 512


class Split(NamedTuple):
    """How the weights of a layer fall into channels.

    Attributes:
        weights: the variables, those in θ.
        forms: functions that bring each one's array, (..., *shape), to (..., m, w).
    """

    weights: tuple
    forms: tuple

    def positions(self, parameters):
        """(m, w) positions in θ."""
        found = [form(parameters.positions(v)) for v, form in zip(self.weights, self.forms)]
        return np.concatenate(found, axis=-1)

    def gradients(self, objective, site, delta):
        """(b, m, w) weight gradients of each example."""
        found = weight_gradients(objective, site, delta, list(self.weights))
        parts = [form(gradient) for form, gradient in zip(self.forms, found)]
        return tf.concat(parts, axis=-1)


def split_of(layer, weights):
    """The `Split` of some weights of a layer, or None where they do not fall into channels.

    Args:
        layer: one of `sites.known_layers`.
        weights: those of its weights that are in θ and in no matrix.
    """
    kernel = getattr(layer, "kernel", None)
    forms = [_form(layer, v, v is kernel) for v in weights]
    if not weights or None in forms:
        return None
    width = sum(_width(v, form) for v, form in zip(weights, forms))
    return Split(tuple(weights), tuple(forms)) if width <= _WIDEST else None


def _form(layer, variable, is_kernel):
    rank = len(variable.shape)
    if isinstance(layer, _DEPTHWISE) and is_kernel:
        return lambda t: _columns(t, rank, 2)
    if (isinstance(layer, _CONVOLUTIONS) and is_kernel) or isinstance(layer, Offsets):
        return lambda t: _columns(t, rank, 1)
    if isinstance(layer, _NORMALISATIONS) or variable is getattr(layer, "bias", None):
        return lambda t: _columns(t, rank, rank)
    return None


def _width(variable, form):
    return form(np.empty(variable.shape, np.int8)).shape[-1]


def _columns(array, rank, last):
    """(..., *shape) as (..., m, w): m the product of the `last` axes of the shape, w of the others."""
    numpy = isinstance(array, np.ndarray)
    shape = list(array.shape)
    lead, inner = len(shape) - rank, shape[len(shape) - rank :]
    w, m = (int(np.prod(part)) for part in (inner[: rank - last], inner[rank - last :]))
    front = shape[:lead] if numpy else [tf.shape(array)[i] for i in range(lead)]
    library = np if numpy else tf
    flat = library.reshape(array, [*front, w, m])
    return np.swapaxes(flat, -1, -2) if numpy else tf.linalg.matrix_transpose(flat)
