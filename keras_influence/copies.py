"""Copies of a model to train in its place: in float64, or newly initialised."""

import contextlib
import random
import textwrap
import threading
import types
import warnings

import keras
import numpy as np

from keras_influence import _keras

# Keras's registry of names belongs to the whole process.
_lock = threading.RLock()


class CopyError(ValueError):
    """Keras cannot make a copy of a model that is the same model."""

    def __init__(self, reason):
        super().__init__(
            f"`model` cannot be copied by Keras: {reason}. Give the class `get_config()` with all "
            "arguments of its `__init__`, and build its layers in `build()`."
        )
        self.reason = reason


def copied(model, change=None):
    """A model rebuilt from the config of another, newly initialised, with its compile state.

    Classes and functions of the user's need not be registered with Keras: those that the model
    holds are found in it.

    Args:
        model: a `keras.Model`.
        change: a function that the serialised config goes through first.

    Raises:
        CopyError: Keras cannot rebuild it.
    """
    known, ambiguous = _custom_objects(model)
    try:
        with warnings.catch_warnings():
            # Keras says that lambdas are unsafe to load: these are live ones.
            warnings.filterwarnings("ignore", message="The object being serialized.*lambda")
            config = keras.saving.serialize_keras_object(model)
        config = config if change is None else change(config)
        with _registered(known):
            copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
    except Exception as error:  # Of any kind: the model's own code runs in it.
        raise CopyError(_shortened(error)) from error
    doubtful = ambiguous & set(_names_in(config))
    if doubtful:
        name = min(doubtful)
        raise CopyError(f"it holds two different classes or functions named {name!r}")
    if not copy.built or _shapes(copy) != _shapes(model):
        raise CopyError("the copy has other weights")
    return copy


@contextlib.contextmanager
def _registered(objects):
    """Let Keras find these classes and functions by their names, before all others.

    In a notebook a class may have been defined, and registered, again since the model was made;
    within models Keras would prefer that one to those of a `custom_object_scope`.
    """
    registry = keras.saving.get_custom_objects()
    with _lock:
        before = dict(registry)
        registry.update(objects)
        try:
            yield
        finally:
            registry.clear()
            registry.update(before)


def _shapes(model):
    return [[tuple(v.shape) for v in vs] for vs in (model.variables, model.trainable_variables)]


def _shortened(error):
    """The innermost of Keras's nested messages, without the configs in it."""
    text = str(error).rsplit("Exception encountered: ", 1)[-1].split("Full object config")[0]
    text = text.split("\n\nconfig=")[0] or type(error).__name__
    return textwrap.shorten(text, 300, placeholder="...").rstrip(".")


# ---- the user's own classes and functions


def _custom_objects(model):
    """What Keras has to be told to rebuild a model: a dict from names to classes and functions.

    Also the set of names that more than one of them has.
    """
    known, ambiguous = {}, set()
    for thing in _held(model):
        name = keras.saving.get_registered_name(thing)
        if known.setdefault(name, thing) is not thing:
            ambiguous.add(name)
    return known, ambiguous


def _held(model):
    """Classes and functions, other than Keras's, of all objects that a model is made of."""
    seen, waiting = set(), [model]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple, set)):
            waiting += thing
        elif isinstance(thing, types.FunctionType):
            if _is_foreign(thing) and thing.__name__ != "<lambda>":
                yield thing
        elif hasattr(thing, "get_config") and not isinstance(thing, type):
            if _is_foreign(type(thing)):
                yield type(thing)
            waiting += vars(thing).values()


def _is_foreign(thing):
    """Whether Keras would not find this class or function by itself."""
    if (thing.__module__ or "").split(".")[0] in ("keras", "tensorflow"):
        return False
    registered = keras.saving.get_registered_object(keras.saving.get_registered_name(thing))
    # A class that stands in for a registered one (see models.py) is made by it.
    stands_in = isinstance(thing, type) and isinstance(registered, type)
    return registered is not thing and not (stands_in and issubclass(thing, registered))


def _names_in(config):
    """All strings in a config."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from _names_in(value)
    elif isinstance(config, (list, tuple)):
        for item in config:
            yield from _names_in(item)


# ---- copies


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
    """A copy with the same weights, whose config went through `change`."""
    with _random_state_kept():
        copy = copied(model, change)
    for original, variable in zip(model.variables, copy.variables):
        variable.assign(np.asarray(original.numpy(), dtype=str(variable.dtype)))
    return copy


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
