"""A model's call, compiled: for nets whose layers, called one by one, take far longer than their arithmetic.

A trace freezes what Python reads. So it is held against the model itself each time that looks begin, and made
anew where the two differ.
"""

import contextlib
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras

# Layers from which on a trace takes less time than the calls that it stands in for.
_MANY = 20
# Differences of outputs, relative to the largest, that are rounding: graphs add in another order.
_ROUNDING = 1e-4

# Of each model that is large enough, or None where it cannot be compiled.
_forwards = weakref.WeakKeyDictionary()


def forward_of(model, x, y_pred):
    """A function of inputs like x that gives the model's outputs, or None where it is not worth it.

    Args:
        y_pred: what the model itself puts out for x.
    """
    known = _forwards.get(model)
    if known is None:
        if model in _forwards or not _is_large(model):
            return None
        known = _forwards[model] = _Forward(model)
    for _ in range(2):
        with contextlib.suppress(Exception):  # What cannot be compiled is called as it is.
            if _agree(known(x), y_pred):
                return known
        known.forget()
    _forwards[model] = None
    return None


def _is_large(model):
    layers = _keras.layers_of(model)
    return len(layers) > _MANY or any(isinstance(layer, keras.layers.RNN) for layer in layers)


class _Forward:
    """Compiled calls of one model, for each structure and shape of an example."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._compiled = {}

    def forget(self):
        self._compiled = {}

    def __call__(self, x):
        flat = tf.nest.flatten(x)
        specs = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in flat]
        key = (repr(tf.nest.map_structure(lambda _: 0, x)), *specs)
        if key not in self._compiled:
            self._compiled[key] = self._compile(x, specs)
        function, structure, names = self._compiled[key]
        found = iter(function(*flat))
        leaves = []
        for carried in names:
            leaf = next(found)
            _keras.carry(leaf, {name: next(found) for name in carried})
            leaves.append(leaf)
        return tf.nest.pack_sequence_as(structure, leaves)

    def _compile(self, x, specs):
        seen = []

        def trace(*flat):
            with keras.StatelessScope():  # What a layer assigns does not leave the trace.
                y_pred = _keras.call_model(self._model(), tf.nest.pack_sequence_as(x, flat))
            leaves = tf.nest.flatten(y_pred)
            carried = [_keras.carried_by(leaf) for leaf in leaves]
            seen.append((tf.nest.map_structure(lambda _: 0, y_pred), list(map(list, carried))))
            return [part for leaf, c in zip(leaves, carried) for part in (leaf, *c.values())]

        function = tf.function(trace, autograph=False).get_concrete_function(*specs)
        return function, *seen[-1]


def _agree(found, y_pred):
    pairs = zip(tf.nest.flatten(found), tf.nest.flatten(y_pred), strict=True)
    return all(a.shape == b.shape and _near(a.numpy(), b.numpy()) for a, b in pairs)


def _near(a, b):
    scale = np.abs(b[np.isfinite(b)]).max(initial=0)
    return np.allclose(a, b, rtol=0, atol=_ROUNDING * scale, equal_nan=True)
