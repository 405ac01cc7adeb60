"""The plain values that functions and objects read, each by a name."""

import contextlib
import dataclasses
import functools
import inspect
import types

import keras
import tensorflow as tf

from keras_influence.described.functions import is_users, steps_of
from keras_influence.described.texts import MOST_ITEMS, text_of

# What is watched elsewhere, or belongs to what is.
_APART = (keras.Variable, tf.Variable, keras.layers.Layer, tf.Tensor, types.ModuleType)
# What is called by others than an object's own methods.
_ENTRIES = frozenset(["__call__", "call", "compute_loss", "compute_mask"])
# What makes an object ready.
_MAKERS = ("__new__", "__init__", "compile", "fit")
# What holds others and nothing else.
_HOLDERS = (dict, list, tuple, type, functools.partial)
# How far objects within objects are followed, and how much is looked at.
_DEPTH, _MOST = 6, 2000


class Values:
    """Plain values by the names under which they are read: numbers, texts, lists and arrays of them.

    A function is asked for its defaults, what it closes over and the globals that it names; an object
    of a user's class for those of its attributes that the function names, or its own methods that the
    function leads to; and what these lead to likewise. Neither variables nor layers count, nor where
    something lies in memory. Lists count as arrays do, and 1 as 1.0 does, for a model that was saved
    and loaded may have the one for the other.

    Attributes:
        found: name -> the values under it as texts, in the order in which they were read.
    """

    def __init__(self):
        self.found = {}
        self._seen, self._left = {}, 0

    def read(self, value, name):
        """Take the values that a function, or an object with `__call__`, reads."""
        self._left = _MOST
        self._read(value, name, _ENTRIES, 0)

    def read_held(self, value, bare, apart):
        """Take what an object of Keras's holds, whatever was taken before.

        Args:
            bare: classes whose attributes are bookkeeping.
            apart: names of attributes that are no part of what it does.
        """
        self._left = _MOST
        with contextlib.suppress(Exception):
            self._read_object(value, type(value).__name__, _ENTRIES, 0, bare, apart)

    def _read(self, value, name, words, depth):
        self._left -= 1
        if depth > _DEPTH or self._left < 0:
            return
        # Objects of users may do anything as they are looked at: what cannot be is no value.
        with contextlib.suppress(Exception):
            text = text_of(value)
            if text is not None:
                self._keep(name, text)
            elif not isinstance(value, _APART) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._read_inside(value, name, words, depth + 1)

    def _keep(self, name, text):
        self.found.setdefault(name, []).append(text)

    def _read_inside(self, value, name, words, depth):
        if isinstance(value, _HOLDERS) or not _users(type(value)):
            for within, part in _parts(value, name, words):
                self._read(part, within, words, depth)
        if hasattr(inspect.unwrap(value), "__code__"):
            self._read_function(value, name, depth)
        elif not isinstance(value, _HOLDERS) and _users(type(value)):
            self._read_object(value, name, words, depth)

    def _read_function(self, function, name, depth):
        owner = getattr(function, "__self__", None)
        function = inspect.unwrap(function)
        function = getattr(function, "__func__", function)
        if not is_users(function):
            return
        if name.rpartition(".")[2] != function.__name__:
            self._keep(name, function.__name__)
        words = _words(function.__code__)
        for word, value in _reads(function, words).items():
            self._read(value, f"{name}.{word}", words, depth)
        if owner is not None:
            self._read(owner, type(owner).__name__, words, depth)

    def _read_object(self, value, name, words, depth, bare=None, apart=()):
        kind = type(value)
        words, functions = _reached(kind, words)
        held = {**_of_classes(_users(kind)), **getattr(value, "__dict__", {})}
        for attribute in sorted(words & held.keys() - _bookkeeping(kind, bare) - set(apart)):
            self._read(held[attribute], f"{name}.{attribute}", words, depth + 1)
        for function in functions:
            self._read(function, f"{name}.{function.__name__}", words, depth + 1)


def _parts(value, name, words):
    """What holds others: (name, part) of each; of classes those that are asked for."""
    if isinstance(value, dict):
        names = {key: f"{name}[{key!r}]" if isinstance(key, str) else name for key in value}
        return [(names[key], value[key]) for key in list(value)[:MOST_ITEMS]]
    if isinstance(value, (list, tuple)):
        return [(name, item) for item in value[:MOST_ITEMS]]
    if isinstance(value, functools.partial):
        return [(name, part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, type):
        held = _of_classes([value] if is_users(value) else [])
        return [(f"{name}.{key}", part) for key, part in held.items() if key in words]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(f"{name}.{key}", getattr(value, key)) for key in names]
    return []


def changed(before, now):
    """The first name under which other values were found before, of those there as many times; "" if none."""
    both = (name for name in before if len(before[name]) == len(now.get(name, ())))
    return next((name for name in both if before[name] != now[name]), "")


def _reads(function, words):
    """What a function has at hand by itself: its defaults, what it closes over, its globals; by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    found = dict(zip(arguments[len(arguments) - len(defaults) :], defaults))
    found |= function.__kwdefaults__ or {}
    for word, cell in zip(code.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # It has no value yet.
            found[word] = cell.cell_contents
    known = function.__globals__
    return found | {word: known[word] for word in sorted(words) if word in known}


@functools.lru_cache(4096)
def _reached(kind, words):
    """All words that an object's methods add to those that it is asked by, and those methods that are the user's."""
    classes = kind.__mro__[:-1]
    known = [f for cls in classes for f in _functions(cls)]
    reached, grown = [], words
    while True:
        more = [f for f in known if f not in reached and f.__name__ in grown]
        if not more:
            return grown, [f for f in reached if is_users(f)]
        reached += more
        grown = grown.union(*(_words(f.__code__) for f in more))


@functools.lru_cache(1024)
def _users(kind):
    """The classes of a class that are the user's."""
    return [cls for cls in kind.__mro__[:-1] if is_users(cls)]


@functools.lru_cache(1024)
def _bookkeeping(kind, bare):
    """The private attributes that methods set which are not the user's, and all that `bare` classes have at first."""
    others = [cls for cls in kind.__mro__[:-1] if cls not in _users(kind)]
    functions = [f for cls in others for f in _functions(cls)]
    private = {name for f in functions for name in _assigned(f) if name.startswith("_")}
    makers = [f for cls in bare or others for f in _functions(cls) if f.__name__ in _MAKERS]
    return private.union(*map(_assigned, makers))


def _of_classes(classes):
    """The plain attributes that classes have, of the first one that has it."""
    items = [item for cls in reversed(classes) for item in vars(cls).items()]
    return {k: v for k, v in items if not (k.startswith("__") or hasattr(type(v), "__get__"))}


@functools.lru_cache(1024)
def _functions(cls):
    """The functions of a class, those of properties too."""
    found = []
    for value in vars(cls).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
        parts = [inspect.unwrap(getattr(p, "__func__", p)) for p in parts if p is not None]
        found += [p for p in parts if isinstance(p, types.FunctionType)]
    return found


@functools.lru_cache(4096)
def _assigned(function):
    """The attributes that a function sets."""
    steps = steps_of(function.__code__)
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


@functools.lru_cache(4096)
def _words(code):
    """The names that a code looks up, and its texts, such as `getattr` takes."""
    inner = [_words(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    texts = [c for c in code.co_consts if isinstance(c, str)]
    return frozenset(code.co_names).union(texts, *inner)
