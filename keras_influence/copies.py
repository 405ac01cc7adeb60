"""Copies of a model to train in its place: in float64, or newly initialised."""

import contextlib
import pathlib
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
    "restore",
    "same",
    "seeded",
    "shortened",
    "state_of",
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
    with random_state_kept():
        copy = copied(model, change)
    restore(copy, state_of(model))
    return copy


def state_of(model):
    """What `restore` gives a copy of a model: its variables' values, and what `adapt` has left."""
    values = [variable.numpy() for variable in model.variables]
    return values, [_left_in(layer) for layer in _keras.layers_of(model)]


def restore(copy, state):
    """Give a newly made model the weights and vocabularies of another, by its `state_of`.

    Raises:
        CopyError: a layer cannot take them.
    """
    values, left = state
    for variable, value in zip(copy.variables, values):
        variable.assign(np.asarray(value, dtype=str(variable.dtype)))
    for layer, found in zip(_keras.layers_of(copy), left):
        _adapt(layer, found)


def _left_in(layer):
    """What `adapt` has left in a layer beside its variables, as Keras's files have it, or None."""
    if not hasattr(layer, "save_assets"):
        return None
    store = {}
    with _restoring(layer), tempfile.TemporaryDirectory() as folder:
        layer.save_own_variables(store)
        layer.save_assets(folder)
        files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
        assets = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: np.asarray(value) for name, value in store.items()}, assets


def _adapt(layer, left):
    """Give a new layer what was left in another by `adapt`."""
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()
    if left is None:
        return
    store, assets = left
    with _restoring(layer), tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layer.load_own_variables(store)
        layer.load_assets(folder)


@contextlib.contextmanager
def _restoring(layer):
    try:
        yield
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
    """Keras's random seed set; the states of all global generators restored."""
    with random_state_kept(), _keras.global_generators_kept():
        keras.utils.set_random_seed(seed)
        yield


@contextlib.contextmanager
def random_state_kept():
    """The states of Python's and NumPy's generators restored at the end."""
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
