"""What a function does, in words that are the same in each process."""

import contextlib
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import pathlib
import sys
import types

import numpy as np
import tensorflow as tf

# What has a text that says all of it.
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, enum.Enum, pathlib.PurePath)
# Where packages are installed, whose functions and objects are known by name.
_INSTALLED = ("site-packages", "dist-packages")
# Bases that hold nothing.
_BARE = ("builtins", "abc", "typing")


def described(function):
    """A function with all that it reads, as nested tuples of text.

    That is its source, its defaults, what it closes over, the globals that it names, and for an
    object with `__call__`, or a method's, the attributes: as far as these are plain values,
    tuples, arrays, dataclasses, or functions and such objects of the user's, which are described
    likewise; global dicts too, where the function assigns to no item of any. Modules and classes count
    by name. What may change as the function runs is no part of what it is: lists, other dicts, and
    names and attributes that it assigns to itself.
    """
    return _described(function, {})


def _described(value, seen):
    """`seen` numbers the functions and objects on the way, which may lead back to themselves."""
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return tuple(_described(v, seen) for v in value)
    if isinstance(value, frozenset):
        return tuple(sorted((_described(v, dict(seen)) for v in value), key=repr))
    if isinstance(value, (np.ndarray, tf.Tensor)):
        return _of_array(value)
    if isinstance(value, (type, types.ModuleType)):
        return getattr(value, "__qualname__", value.__name__)
    if id(value) in seen:
        return f"again {seen[id(value)]}"
    if callable(value) or dataclasses.is_dataclass(value):
        seen[id(value)] = len(seen)
        return _of_object(value, seen)
    return type(value).__qualname__


def _of_array(value):
    array = np.asarray(value)
    if array.dtype.hasobject:
        return array.shape, repr([str(v) for v in array.ravel() if isinstance(v, (str, bytes))])
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return str(array.dtype), array.shape, digest


def _of_object(value, seen):
    """A function, a method, or an object of a class."""
    if isinstance(value, functools.partial):
        arguments = (*value.args, *sorted(value.keywords.items()))
        return _described(value.func, seen), _described(arguments, seen)
    if dataclasses.is_dataclass(value):
        held = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
        return type(value).__qualname__, _described(held, seen)
    value = inspect.unwrap(value)
    function = getattr(value, "__func__", value)
    if not hasattr(function, "__code__"):
        return _source(value), _of_methods(value, seen)
    keywords = sorted((getattr(function, "__kwdefaults__", None) or {}).items())
    held = [*(function.__defaults__ or ()), *keywords, *_closure(function)]
    if is_users(function):
        held += _globals(function)
    owner = getattr(value, "__self__", None)
    about = () if owner is None or isinstance(owner, type) else _of_methods(owner, seen)
    return _source(value), _described(tuple(held), seen), about


def _of_methods(value, seen):
    """What an object of a user's class holds, and what its methods read besides."""
    classes = [cls for cls in type(value).__mro__ if cls.__module__ not in _BARE]
    if not classes or not all(map(is_users, classes)):
        return type(value).__qualname__
    functions = {
        name: function
        for cls in reversed(classes)
        for name, function in vars(cls).items()
        if isinstance(function, types.FunctionType)
    }
    running = [f for name, f in functions.items() if name != "__init__"]
    changing = {i.argval for f in running for i in steps_of(f.__code__) if i.opname == "STORE_ATTR"}
    held = sorted(
        item for item in getattr(value, "__dict__", {}).items() if item[0] not in changing
    )
    methods = tuple(functions[name] for name in sorted(functions))
    return _described((*held, *methods), seen)


def _globals(function):
    """The names that a function and those in it look up in its module, with their values."""
    steps = list(steps_of(function.__code__))
    changing = {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    known = function.__globals__
    found = [(name, known[name]) for name in sorted(names - changing) if name in known]
    if any(step.opname == "STORE_SUBSCR" for step in steps):
        return found
    # Settings, where nothing is written to them.
    return [(name, _items(value) if isinstance(value, dict) else value) for name, value in found]


def _items(settings):
    return tuple(sorted(settings.items(), key=lambda item: repr(item[0])))


def steps_of(code):
    """Its instructions, with those of the functions in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from steps_of(constant)


def _closure(function):
    """What a function closes over, as far as it has a value yet."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def is_users(value):
    """Whether a function or a class is neither Python's, nor ours, nor of an installed package."""
    name = getattr(value, "__module__", None) or ""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return not any(part in _INSTALLED for part in pathlib.Path(file).parts)


def _source(function):
    """Its text, or its class's; where there is none, as of what is typed at a prompt, its name and bytecode."""
    for source in (function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(source)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    steps = () if code is None else tuple((s.opname, _plain(s.argval)) for s in steps_of(code))
    return getattr(function, "__qualname__", type(function).__qualname__), steps


def _plain(argument):
    """What an instruction is about, without where it lies in memory."""
    return argument.co_name if isinstance(argument, types.CodeType) else repr(argument)
