"""From a function or an object to all that it reads, and on from there."""

import collections
import contextlib
import dataclasses
import functools
import inspect
import types
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_influence.described.classes import bookkeeping_of, plain_of, reached_by, users_of
from keras_influence.described.code import Code, code_of, is_users
from keras_influence.described.texts import MOST_ITEMS, text_of

# What is watched elsewhere, or belongs to what is.
_APART = (keras.Variable, tf.Variable, keras.layers.Layer, tf.Tensor, types.ModuleType)
# What is called by others than an object's own methods.
_ENTRIES = Code(words=frozenset(["__call__", "call", "compute_loss", "compute_mask"]))
# What may change though nothing is assigned to its name.
_WRITABLE = (list, dict, set)
# How many things are looked at from one on, the nearest first.
_MOST = 2000


class Read(NamedTuple):
    """Something that is read.

    Attributes:
        name: the way to it, as "loss.holder.factor".
        value: itself.
        steady: whether what reads it leaves it as it is.
    """

    name: str
    value: object
    steady: bool = True


def walk(reads, text=text_of, seen=None, changing=True):
    """All that is read from some `Read`s on, in an order that is the same in each process.

    A function leads to its defaults, what it closes over, and if it is the user's the globals that
    it names; a method also to its object. An object of a user's class leads to those of its attributes
    that any of these functions name, or its own methods that they lead to, and to these methods; a
    dataclass to all its fields; and what holds others, as a list, to these. Neither variables nor
    layers lead anywhere.

    Args:
        text: what gives the text of a plain value, which leads nowhere, and None of others.
        seen: id -> the value, of what was followed before and will not be again.
        changing: whether to follow also what the functions that read it change.

    Returns:
        (name, value, text) of each.
    """
    seen, asked, texts = {} if seen is None else seen, _ENTRIES, {}

    def once(value):
        if id(value) not in texts:
            texts[id(value)] = value, text(value)
        return texts[id(value)][1]

    # What is found asks for more of the objects on the way, until that is all.
    while True:
        followed = dict(seen)
        found = list(_followed(reads, asked, once, followed, changing))
        functions = [function_of(value) for _, value, plain in found if plain is None]
        users = [f for f in functions if f is not None and is_users(f)]
        names = Code(words=frozenset(f.__name__ for f in users))
        grown = asked.and_of([names, *(code_of(f.__code__) for f in users)])
        if grown == asked:
            seen.update(followed)
            return found
        asked = grown


def _followed(reads, asked, text, seen, changing):
    """The same, for objects that are asked by some code."""
    queue = collections.deque(reads)
    for _ in range(_MOST):
        if not queue:
            return
        read, found, leads = queue.popleft(), None, False
        # Objects of users may do anything as they are looked at: what cannot be is no value.
        with contextlib.suppress(Exception):
            found = text(read.value)
            leads = found is None and id(read.value) not in seen
        yield read.name, read.value, found
        if leads:
            seen[id(read.value)] = read.value
            with contextlib.suppress(Exception):
                queue += [part for part in _inside(read, asked) if changing or part.steady]


def function_of(value):
    """The function of a function, of a method or of what wraps one; None of others."""
    with contextlib.suppress(Exception):
        function = inspect.unwrap(value)
        function = getattr(function, "__func__", function)
        return function if isinstance(function, types.FunctionType) else None


def _inside(read, asked):
    """What something that is no plain value leads to."""
    name, value, _ = read
    if isinstance(value, _APART):
        return []
    if isinstance(value, (dict, list, tuple, functools.partial)):
        return [Read(*part) for part in _parts(value, name)]
    if isinstance(value, type):
        held = plain_of([value] if is_users(value) else [])
        return _by_name(name, {key: held[key] for key in sorted(asked.words & held.keys())}, asked)
    if function_of(value) is not None:
        return _of_function(value, name)
    return (
        of_object(value, name, asked) if users_of(type(value)) else _by_name(name, _fields(value))
    )


def _parts(value, name):
    """What holds others: (name, part) of each."""
    if isinstance(value, functools.partial):
        return [(name, part) for part in (value.func, value.args, value.keywords)]
    if not isinstance(value, dict):
        return [(name, item) for item in value[:MOST_ITEMS]]
    keys = [(text_of(key), key) for key in list(value)[:MOST_ITEMS]]
    keys.sort(key=lambda pair: pair[0] or "")
    return [(name if text is None else f"{name}[{text}]", value[key]) for text, key in keys]


def _by_name(name, held, code=_ENTRIES):
    """What is held by names; steady where some code neither sets that nor may write to it."""
    writable = _WRITABLE if code.writes else ()
    return [
        Read(f"{name}.{key}", value, key not in code.set and not isinstance(value, writable))
        for key, value in held.items()
    ]


def _of_function(value, name):
    """What a function has at hand besides its arguments, and the object of a method."""
    owner, function = getattr(value, "__self__", None), function_of(value)
    own = code_of(function.__code__)
    held = _at_hand(function, own.globals if is_users(function) else ())
    called = [f for f in held.values() if isinstance(f, types.FunctionType) and is_users(f)]
    # To which it may give a list that it has at hand.
    writes = own.and_of([code_of(f.__code__) for f in called]).writes
    reads = _by_name(name, held, Code(set=own.assigned, writes=writes))
    return reads if owner is None else [*reads, Read(type(owner).__name__, owner)]


def _at_hand(function, names):
    """The defaults of a function, what it closes over, and globals of these names; each by its name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    found = dict(zip(arguments[len(arguments) - len(defaults) :], defaults))
    found |= function.__kwdefaults__ or {}
    for name, cell in zip(code.co_freevars, function.__closure__ or ()):
        with contextlib.suppress(ValueError):  # It has no value yet.
            found[name] = cell.cell_contents
    known = function.__globals__
    return found | {name: known[name] for name in sorted(names) if name in known}


def of_object(value, name, asked=_ENTRIES, bare=None, apart=()):
    """What an object leads to that is asked by some code.

    Args:
        bare: classes whose attributes are bookkeeping; those that are not the user's if not given.
        apart: names of attributes that do not count.
    """
    kind, fields = type(value), _fields(value)
    code, methods = reached_by(kind, asked)
    held = {**plain_of(users_of(kind)), **getattr(value, "__dict__", {}), **fields}
    named = fields.keys() | (code.words & held.keys()) - bookkeeping_of(kind, bare) - set(apart)
    # What has methods sets its attributes by these; of other objects it may be anybody.
    own = Code().and_of([code_of(method.__code__) for method in methods])
    setting = code._replace(set=own.set if methods or fields else asked.set)
    reads = _by_name(name, {key: held[key] for key in sorted(named)}, setting)
    return reads + [Read(f"{name}.{method.__name__}", method) for method in methods]


def _fields(value):
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {field.name: getattr(value, field.name) for field in fields}
