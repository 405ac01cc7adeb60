"""Copies of a model to train in its place: in float64, or newly initialised."""

import contextlib
import random
import tempfile

import keras
import numpy as np

from keras_influence import _keras
from keras_influence.rebuilding import CopyError, copied, shortened

__all__ = [
    "CopyError",
    "Worker",
    "copied",
    "double",
    "double_precision",
    "same",
    "seeded",
    "shortened",
]


@contextlib.contextmanager
def double_precision():
    """Let Keras make and read everything in float64 meanwhile."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def double(model):
    """A copy in float64 with the same weights and compile state, to be used in `double_precision`.

    In float32 the rounding of a loss is larger than what one example of many changes.

    Raises:
        CopyError: Keras cannot copy the model.
    """
    return same(model, _in_double)


def same(model, change=None):
    """A copy with the same weights and vocabularies, whose config went through `change`."""
    with _random_state_kept():
        copy = copied(model, change)
    for original, variable in zip(model.variables, copy.variables):
        variable.assign(np.asarray(original.numpy(), dtype=str(variable.dtype)))
    for layer, twin in zip(model._flatten_layers(), copy._flatten_layers()):
        _adapt(twin, layer)
    return copy


def _adapt(twin, layer):
    """Give a layer's copy what `adapt` has left in it beside its variables, as Keras's files do."""
    if isinstance(layer, keras.layers.Normalization):
        twin.finalize_state()
    if not hasattr(layer, "save_assets"):
        return
    store = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            layer.save_own_variables(store)
            twin.load_own_variables(store)
            layer.save_assets(folder)
            twin.load_assets(folder)
        except Exception as error:  # Of any kind: it may be a layer of the user's.
            raise CopyError(f"{layer.name} cannot be restored: {shortened(error)}") from error


def _in_double(config):
    """A serialised model with each floating dtype replaced by float64."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float64"}}
        if config.get("class_name") == "L1" and config.get("module") == "keras.regularizers":
            # Keras 3.10's L1 is of float32 whatever it is asked for; this is the same penalty.
            return {**config, "class_name": "L1L2", "config": {**config["config"], "l2": 0.0}}
        return {
            key: "float64"
            if key == "dtype" and "float" in str(value) and not isinstance(value, dict)
            else _in_double(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_in_double(item) for item in config)
    return config


@contextlib.contextmanager
def seeded(seed):
    """Keras's random seed set; the states of Python's and NumPy's generators restored."""
    with _random_state_kept():
        keras.utils.set_random_seed(seed)
        yield


@contextlib.contextmanager
def _random_state_kept():
    # A new model draws the seeds of its initialisers from Python's generator.
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Worker:
    """One copy of a model that is trained again and again, so that Keras traces it once.

    Weights of layers that are not trainable belong to the model, not to its training: they keep
    the values that they have in the original.

    Args:
        model: the original, left as it is.
        chosen: those of `model.trainable_variables` that are to be trained; None for all. The
            others keep their values likewise.

    Attributes:
        model: the copy.
        kept: its variables that keep their values.
    """

    def __init__(self, model, chosen=None):
        self._original = model
        self.model = same(model)
        ids = {id(v) for v in _keras.frozen_variables(model)}
        if chosen is not None:
            ids |= {id(v) for v in model.weights} - {id(v) for v in chosen}
        pairs = zip(model.variables, self.model.variables)
        self._kept = [(v, twin) for v, twin in pairs if id(v) in ids]
        self.kept = [twin for _, twin in self._kept]
        self._left_out = [(v, twin) for v, twin in self._kept if twin.trainable]
        if self.model.optimizer is not None:
            self.model.optimizer.build(self.model.trainable_variables)
            self._state = [v.numpy() for v in self.model.optimizer.variables]

    def freeze(self):
        """Make what is not to be trained not trainable; Keras then leaves out its regularisers."""
        for _, twin in self._left_out:
            twin.trainable = False

    def restart(self):
        """New initial weights, drawn with the present random seed, and a new optimizer."""
        for variable, fresh in zip(self.model.variables, copied(self._original).variables):
            variable.assign(fresh.numpy())
        for original, twin in self._kept:
            twin.assign(original.numpy())
        if self.model.optimizer is not None:
            for variable, value in zip(self.model.optimizer.variables, self._state):
                variable.assign(value)

    def moved(self):
        """Paths of the variables that were not to be trained, and have changed all the same."""
        return [v.path for v, twin in self._left_out if (v.numpy() != twin.numpy()).any()]
