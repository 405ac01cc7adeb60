"""What a class has and its methods do, whatever its objects hold."""

import functools
import inspect
import types

from keras_influence.described.code import Code, code_of, is_users

# What makes an object ready; nothing leads to the first two of these.
_MAKERS = ("__new__", "__init__", "compile", "fit")
# Other methods with such underscores may be operators, which nobody names.
_NO_OPERATORS = ("__post_init__", "__init_subclass__", "__repr__", "__str__", "__del__")


@functools.lru_cache(4096)
def reached_by(kind, code):
    """A code with that of an object's methods that it leads to, and of these methods those that are the user's."""
    functions = [f for cls in kind.__mro__[:-1] for f in _functions(cls)]
    known = [f for f in functions if f.__name__ not in _MAKERS[:2]]
    reached = []
    while True:
        led = [f for f in known if f.__name__ in code.words or _is_operator(f)]
        more = [f for f in led if f not in reached]
        if not more:
            return code, [f for f in reached if is_users(f)]
        reached += more
        code = code.and_of([code_of(f.__code__) for f in more])


def _is_operator(function):
    """Whether it is a method of the user's that nobody need name."""
    name = function.__name__
    return name.startswith("__") and name not in _NO_OPERATORS and is_users(function)


@functools.lru_cache(1024)
def users_of(kind):
    """The classes of a class that are the user's."""
    return [cls for cls in kind.__mro__[:-1] if is_users(cls)]


@functools.lru_cache(1024)
def bookkeeping_of(kind, bare):
    """The private attributes that methods set which are not the user's, and all that `bare` classes have at first."""
    others = [cls for cls in kind.__mro__[:-1] if cls not in users_of(kind)]
    private = {name for name in _set_by(others) if name.startswith("_")}
    return private | _set_by(bare or others, _MAKERS)


def _set_by(classes, methods=None):
    """The attributes that the methods of classes set, or some of these methods."""
    functions = [f for cls in classes for f in _functions(cls)]
    chosen = [f for f in functions if methods is None or f.__name__ in methods]
    return Code().and_of([code_of(f.__code__) for f in chosen]).set


def plain_of(classes):
    """The plain attributes that classes have, of the first one that has it."""
    items = [item for cls in reversed(classes) for item in vars(cls).items()]
    return {k: v for k, v in items if not (k.startswith("__") or hasattr(type(v), "__get__"))}


@functools.lru_cache(1024)
def _functions(cls):
    """The functions that a class itself has, those of properties too."""
    found = []
    for value in vars(cls).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
        parts = [inspect.unwrap(getattr(p, "__func__", p)) for p in parts if p is not None]
        found += [p for p in parts if isinstance(p, types.FunctionType)]
    return found
