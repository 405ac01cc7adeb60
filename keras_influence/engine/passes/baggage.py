"""Keras's objects in a pickle: by config and weights, or else attribute by attribute."""

import warnings

import keras
import numpy as np

from keras_influence import _keras, copies, rebuilding


def reduced(thing):
    """How a pickler is to take an object of Keras's apart; `NotImplemented` for all others.

    Keras's own way, a file of its format, needs classes that can be imported.
    """
    if isinstance(thing, _keras.Variable):
        return _variable, (thing.numpy(), str(thing.dtype), thing.trainable, thing.name)
    if isinstance(thing, (list, dict, set)) and type(thing).__module__.startswith("keras."):
        plain = next(kind for kind in (list, dict, set) if isinstance(thing, kind))
        return plain, (list(thing.items()) if plain is dict else list(thing),)
    if isinstance(thing, type) or not hasattr(thing, "get_config") or not _roots(thing, "keras"):
        return NotImplemented
    own = _own_classes(thing)
    if own and not any("get_config" in vars(cls) for cls in own):
        # What Keras makes of the arguments of `__init__` is not all of them in each version.
        if _keras.has_parts(thing):
            return _keras.empty, (own[0],), _keras.parts_of(thing), None, None, _put_together
        if isinstance(thing, keras.Loss):
            return _keras.empty, (own[0],), vars(thing)
    state = copies.state_of(thing) if isinstance(thing, keras.Layer) else None
    return _configured, (*rebuilding.described(thing), state)


def _own_classes(thing):
    """The classes of an object, its own first, that are neither Keras's nor of this package."""
    of_others = _roots(thing, "keras", "keras_influence", "tensorflow", "builtins")
    return [cls for cls in type(thing).__mro__ if cls not in of_others]


def _roots(thing, *packages):
    return [cls for cls in type(thing).__mro__ if cls.__module__.partition(".")[0] in packages]


def _configured(config, known, state):
    thing = rebuilding.rebuilt(config, known)
    if state is not None:
        if len(thing.variables) != len(state[0]):
            raise rebuilding.CopyError("rebuilt from its config it has other weights")
        copies.restore(thing, state)
    return thing


def _variable(value, dtype, trainable, name):
    return _keras.Variable(np.asarray(value), dtype=dtype, trainable=trainable, name=name)


def _put_together(layer, parts):
    with warnings.catch_warnings():
        # That a layer has no `build`: it is built.
        warnings.simplefilter("ignore", UserWarning)
        _keras.put_together(layer, parts)
