"""Copies of a model to train in its place: in float64, or newly initialised."""

import contextlib
import random

import keras
import numpy as np


def copied(model, change=None):
    """A model rebuilt from the config of another, newly initialised, with its compile state.

    Args:
        model: a `keras.Model`.
        change: a function that the serialised config goes through first.

    Raises:
        ValueError: Keras cannot rebuild it.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
        config = config if change is None else change(config)
        classes = {type(model).__name__: type(model)}
        copy = keras.saving.deserialize_keras_object(config, custom_objects=classes)
        if not copy.built or len(copy.variables) != len(model.variables):
            raise ValueError("the copy has other weights")
        return copy
    except Exception as error:
        raise ValueError(
            f"`model` cannot be copied by Keras: {error}. Give its class `get_config()`, and "
            "build its layers in `build()`."
        ) from error


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
        ValueError: Keras cannot copy the model.
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

    Attributes:
        model: the copy.
    """

    def __init__(self, model):
        self._original = model
        self.model = same(model)
        if self.model.optimizer is not None:
            self.model.optimizer.build(self.model.trainable_variables)
            self._state = [v.numpy() for v in self.model.optimizer.variables]

    def restart(self):
        """New initial weights, drawn with the present random seed, and a new optimizer."""
        for variable, fresh in zip(self.model.variables, copied(self._original).variables):
            variable.assign(fresh.numpy())
        if self.model.optimizer is not None:
            for variable, value in zip(self.model.optimizer.variables, self._state):
                variable.assign(value)
