"""What functions and objects read, as texts: the plain values by name, or all of it in one."""

import contextlib

from keras_influence.described.code import is_users, source_of
from keras_influence.described.texts import EXACT, text_of
from keras_influence.described.walk import Read, function_of, of_object, walk


class Values:
    """Plain values by the names under which they are read: numbers, texts, lists and arrays of them.

    What reads what is said in `walk`. Of functions the names count. Lists count as arrays do, and 1 as
    1.0 does, for a model that was saved and loaded may have the one for the other.

    Attributes:
        found: name -> the values under it as texts, in the order in which they were read.
    """

    def __init__(self):
        self.found, self._seen = {}, {}

    def read(self, value, name):
        """Take the values that a function, or an object with `__call__`, reads."""
        self._take([Read(name, value)])

    def read_held(self, value, bare, apart):
        """Take what an object of Keras's holds, whatever was taken before; see `of_object`."""
        with contextlib.suppress(Exception):
            self._take(of_object(value, type(value).__name__, bare=bare, apart=apart))

    def _take(self, reads):
        for name, value, text in walk(reads, seen=self._seen):
            text = getattr(function_of(value), "__name__", None) if text is None else text
            if text is not None:
                self.found.setdefault(name, []).append(text)


def changed(before, now):
    """The first name under which other values were found before, of those there as many times; "" if none."""
    both = (name for name in before if len(before[name]) == len(now.get(name, ())))
    return next((name for name in both if before[name] != now[name]), "")


def described(function):
    """A function, or an object with `__call__`, with all that it reads, as a list of texts.

    These are the sources of the user's functions and the plain values; all else counts by the name of its
    kind, as do modules, classes and functions of packages. What may change as the function runs is no part
    of what it is: names and attributes that it assigns to, and lists, dicts and sets of a function
    that writes to any, or calls one that does.
    """
    numbers, found = {}, []
    for name, value, text in walk([Read("", function)], _exactly, changing=False):
        if text is None:
            # The second time that something comes the number says which it is.
            text = f"{numbers.setdefault(id(value), len(numbers))} {_kind(value)}"
        found.append(f"{name}: {text}")
    return found


def _exactly(value):
    text = text_of(value, EXACT)
    return text and f"{getattr(value, 'dtype', type(value).__name__)} {text}"


def _kind(value):
    function = function_of(value)
    if function is not None and is_users(function):
        return source_of(function.__code__)
    with contextlib.suppress(Exception):
        name = getattr(value, "__qualname__", value.__name__)
        return f"{getattr(value, '__module__', None)}.{name}"
    return type(value).__qualname__
