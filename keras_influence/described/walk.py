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
        code: of the functions that lead to it.
        steady: whether these leave it as it is.
    """

    name: str
    value: object
    code: Code = _ENTRIES
    steady: bool = True


def walk(reads, text=text_of, seen=None, changing=True):
    """All that is read from some `Read`s on, in an order that is the same in each process.

    A function leads to its defaults, what it closes over, and if it is the user's the globals that
    it names; a method also to its object. An object of a user's class leads to those of its attributes
    that the functions on the way to it name, or its own methods that they lead to, and to these
    methods; a dataclass to all its fields; and what holds others, as a list, to these. Neither
    variables nor layers lead anywhere.

    Args:
        text: what gives the text of a plain value, which leads nowhere, and None of others.
        seen: id -> the value, of what was followed before and will not be again.
        changing: whether to follow also what the functions that read it change.

    Yields:
        (name, value, text).
    """
    queue, seen = collections.deque(reads), {} if seen is None else seen
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
                queue += [part for part in _inside(read) if changing or part.steady]


def function_of(value):
    """The function of a function, of a method or of what wraps one; None of others."""
    with contextlib.suppress(Exception):
        function = inspect.unwrap(value)
        function = getattr(function, "__func__", function)
        return function if isinstance(function, types.FunctionType) else None


def _inside(read):
    """What something that is no plain value leads to."""
    value = read.value
    if isinstance(value, _APART):
        return []
    if isinstance(value, (dict, list, tuple, functools.partial)):
        return [Read(*part, read.code) for part in _parts(value, read.name)]
    if isinstance(value, type):
        held = plain_of([value] if is_users(value) else [])
        asked = {key: held[key] for key in sorted(read.code.words & held.keys())}
        return _by_name(read.name, asked, read.code)
    if function_of(value) is not None:
        return _of_function(read)
    if users_of(type(value)):
        return of_object(value, read.name, read.code)
    return _by_name(read.name, _fields(value), read.code)


def _parts(value, name):
    """What holds others: (name, part) of each."""
    if isinstance(value, functools.partial):
        return [(name, part) for part in (value.func, value.args, value.keywords)]
    if not isinstance(value, dict):
        return [(name, item) for item in value[:MOST_ITEMS]]
    keys = [(text_of(key), key) for key in list(value)[:MOST_ITEMS]]
    keys.sort(key=lambda pair: pair[0] or "")
    return [(name if text is None else f"{name}[{text}]", value[key]) for text, key in keys]


def _by_name(name, held, code, changed=None):
    """What is held by names, for some code, which changes these or else the attributes that it sets."""
    changed = code.set if changed is None else changed
    return [
        Read(
            f"{name}.{key}",
            value,
            code,
            steady=key not in changed and not (code.writes and isinstance(value, _WRITABLE)),
        )
        for key, value in held.items()
    ]


def _of_function(read):
    """What a function has at hand besides its arguments, and the object of a method."""
    owner, function = getattr(read.value, "__self__", None), function_of(read.value)
    own = code_of(function.__code__)
    held = _at_hand(function, own.globals if is_users(function) else ())
    called = [f for f in held.values() if isinstance(f, types.FunctionType) and is_users(f)]
    # To which it may give what it has at hand.
    code = own.and_of([code_of(f.__code__) for f in called])
    reads = _by_name(read.name, held, code, own.assigned)
    return reads if owner is None else [*reads, Read(type(owner).__name__, owner, code)]


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


def of_object(value, name, code=_ENTRIES, bare=None, apart=()):
    """What an object leads to that is asked by some code.

    Args:
        bare: classes whose attributes are bookkeeping; those that are not the user's if not given.
        apart: names of attributes that do not count.
    """
    kind, fields = type(value), _fields(value)
    code, methods = reached_by(kind, code)
    held = {**plain_of(users_of(kind)), **getattr(value, "__dict__", {}), **fields}
    asked = fields.keys() | (code.words & held.keys()) - bookkeeping_of(kind, bare) - set(apart)
    reads = _by_name(name, {key: held[key] for key in sorted(asked)}, code)
    return reads + [Read(f"{name}.{method.__name__}", method, code) for method in methods]


def _fields(value):
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {field.name: getattr(value, field.name) for field in fields}
