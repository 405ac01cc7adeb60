"""Rebuilding a model from its config, with the user's own classes and functions in it."""

import base64
import contextlib
import inspect
import marshal
import textwrap
import threading
import types
import warnings

import keras

from keras_influence.errors import explained

# Keras's registry of names belongs to the whole process.
_lock = threading.RLock()


class CopyError(ValueError):
    """Keras cannot make a copy of a model that is the same model."""

    anchor = "copies"
    __str__ = explained

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
    config, known = described(model)
    copy = rebuilt(config if change is None else change(config), known)
    if not copy.built or _shapes(copy) != _shapes(model):
        raise CopyError("the copy has other weights")
    return copy


def described(model):
    """What a model is rebuilt from: its config, and the user's classes and functions by name.

    Raises:
        CopyError: Keras cannot describe it, or not without doubt.
    """
    known, ambiguous = _custom_objects(model)
    try:
        with warnings.catch_warnings():
            # Keras says that lambdas are unsafe to load: these are live ones.
            warnings.filterwarnings("ignore", message="The object being serialized.*lambda")
            config = keras.saving.serialize_keras_object(model)
        config = _acceptable(_with_lambdas(config, _lambdas(model), known), known)
    except Exception as error:  # Of any kind: the model's own code runs in it.
        raise CopyError(shortened(error)) from error
    doubtful = ambiguous & set(_names_in(config))
    if doubtful:
        name = min(doubtful)
        raise CopyError(f"it holds two different classes or functions named {name!r}")
    return config, known


def rebuilt(config, known):
    """The model of what `described` gave, newly initialised.

    Raises:
        CopyError: Keras cannot rebuild it.
    """
    try:
        with _registered(known):
            return keras.saving.deserialize_keras_object(config, safe_mode=False)
    except Exception as error:  # Of any kind: the model's own code runs in it.
        raise CopyError(shortened(error)) from error


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


def shortened(error):
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
        if _is_lambda(thing):
            continue
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
            waiting.extend(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            waiting.extend(thing)
        elif isinstance(thing, types.FunctionType):
            if _is_foreign(thing):
                yield thing
        elif hasattr(thing, "get_config") and not isinstance(thing, type):
            if _is_foreign(type(thing)):
                yield type(thing)
            waiting.extend(vars(thing).values())


def _is_foreign(thing):
    """Whether this class or function is the user's, not Keras's."""
    if (thing.__module__ or "").split(".")[0] in ("keras", "tensorflow"):
        return False
    registered = keras.saving.get_registered_object(keras.saving.get_registered_name(thing))
    if registered is thing or not (isinstance(thing, type) and isinstance(registered, type)):
        return True
    # A class that stands in for a registered one (see models.py) is made by it.
    return not issubclass(thing, registered)


def _lambdas(model):
    return [thing for thing in _held(model) if _is_lambda(thing)]


def _is_lambda(thing):
    return isinstance(thing, types.FunctionType) and thing.__name__ == "<lambda>"


def _with_lambdas(config, lambdas, known):
    """A config in which lambdas go by names of their own, which become known.

    Keras writes their code down, without the globals that it reads; and in an activation so that
    it cannot read it itself.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(_with_lambdas(item, lambdas, known) for item in config)
    if not isinstance(config, dict):
        return config
    code = _code_in(config)
    found = [thing for thing in lambdas if thing.__code__ == code]
    if len(found) == 1:
        name = f"<lambda {lambdas.index(found[0])}>"
        known[name] = found[0]
        return {
            "module": "builtins",
            "class_name": "function",
            "config": name,
            "registered_name": name,
        }
    return {key: _with_lambdas(value, lambdas, known) for key, value in config.items()}


def _code_in(config):
    """The code of a lambda that Keras has written down in one of its three ways, else None."""
    if config.get("class_name") == "__lambda__":
        config = config["config"]
    text = config.get("code") if "closure" in config else None
    if set(config) == {"value"} and isinstance(config["value"], tuple):
        text = config["value"][0]
    return marshal.loads(base64.b64decode(text)) if isinstance(text, str) else None


def _acceptable(config, known):
    """A config without what Keras adds for every layer where the class's `__init__` takes none.

    Such a class, with no `get_config()` and no `**kwargs`, is what most tutorials write.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(_acceptable(item, known) for item in config)
    if not isinstance(config, dict):
        return config
    config = {key: _acceptable(value, known) for key, value in config.items()}
    made = known.get(config.get("registered_name") or config.get("class_name"))
    if isinstance(made, type) and isinstance(config.get("config"), dict):
        refused = {"name", "trainable", "dtype"} - _arguments(made)
        inner = {key: value for key, value in config["config"].items() if key not in refused}
        config["config"] = inner
    return config


def _arguments(made):
    """Which of the arguments that all layers have a class can be made with."""
    own = [c for c in made.__mro__ if (c.__module__ or "").split(".")[0] != "keras"]
    parameters = inspect.signature(made.__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if takes_all or any("from_config" in vars(c) for c in own):
        return {"name", "trainable", "dtype"}
    return set(parameters)


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
