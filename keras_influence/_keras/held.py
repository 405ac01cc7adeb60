"""What the layers and the losses of a model hold besides variables, as plain values."""

import weakref

import keras
from keras import tree
from keras.src.models.functional import Functional

from keras_influence._keras.layers import layers_of
from keras_influence._keras.losses import options_of
from keras_influence.described import Values

# Classes whose attributes are bookkeeping: what is made of layers, and what is not.
_MODELS = (*Functional.__mro__[:-1], *keras.Sequential.__mro__[:-1])
_LAYERS = keras.layers.Layer.__mro__[:-1]
_LOSSES = keras.losses.Loss.__mro__[:-1]
# What is another in a model that is made anew and does the same.
_APART = ("name", "seed", "filepath", "trainable")

# Names of values that a mere call of a model has changed.
_changing = weakref.WeakKeyDictionary()


def values_of(model):
    """The plain values that a model's layers and losses hold and read, by name, in order.

    They are a layer's rate, a threshold, a flag, a list that a loss reads. What calls of the model
    change, a counter, is left out as far as that is known; see `leave_out_changing`.
    """
    found = Values()
    for layer in layers_of(model):
        bare = _MODELS if isinstance(layer, keras.Model) else _LAYERS
        found.read_held(layer, bare, _APART)
    for loss in tree.flatten(getattr(model._compile_loss, "_user_loss", None)):
        if isinstance(loss, keras.losses.Loss):
            found.read_held(loss, _LOSSES, _APART)
            found.read(options_of(loss), type(loss).__name__)
        elif callable(loss):
            found.read(loss, getattr(loss, "__name__", type(loss).__name__))
    left_out = _changing.get(model, ())
    return {name: tuple(held) for name, held in found.found.items() if name not in left_out}


def leave_out_changing(model, before):
    """Leave out from now on of `values_of` what was another value, or none, before the model was called."""
    now = values_of(model)
    changed = {name for name in before | now if before.get(name) != now.get(name)}
    _changing.setdefault(model, set()).update(changed)
