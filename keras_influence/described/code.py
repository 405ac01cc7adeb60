"""What functions and classes say in their code, whatever is in memory."""

import contextlib
import dis
import functools
import inspect
import pathlib
import sys
import types
from typing import NamedTuple

from keras_influence.described.texts import text_of

# Where packages are installed, whose functions and objects are known by name.
_INSTALLED = ("site-packages", "dist-packages")
# Methods that lists, dicts and sets have and their likes that cannot change have not; instructions that write.
_WRITERS = {name for kind in (list, dict, set) for name in dir(kind)}.difference(
    *map(dir, (tuple, types.MappingProxyType, frozenset))
)
_WRITING = ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")


class Code(NamedTuple):
    """What functions do with names.

    Attributes:
        words: the names that they look up anywhere, and their texts, such as `getattr` takes.
        globals: those that they look up in their module.
        assigned: names outside of themselves that they assign to.
        set: attributes that they set.
        writes: by what they may write to a list, a dict or a set; empty if to none.
    """

    words: frozenset = frozenset()
    globals: frozenset = frozenset()
    assigned: frozenset = frozenset()
    set: frozenset = frozenset()
    writes: frozenset = frozenset()

    def and_of(self, others):
        """With what others do."""
        return Code(*(frozenset().union(*names) for names in zip(self, *others)))


@functools.lru_cache(4096)
def code_of(code):
    """The `Code` of a function's `__code__`, with that of the functions in it."""
    steps = list(dis.get_instructions(code))

    def named(*operations):
        return frozenset(step.argval for step in steps if step.opname in operations)

    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    writing = [step.opname for step in steps if step.opname in _WRITING]
    own = Code(
        words=frozenset(code.co_names).union(texts),
        globals=named("LOAD_GLOBAL", "LOAD_NAME"),
        assigned=named("STORE_GLOBAL", "STORE_DEREF"),
        set=named("STORE_ATTR"),
        writes=_WRITERS.intersection(code.co_names).union(writing),
    )
    return own.and_of([code_of(c) for c in code.co_consts if isinstance(c, types.CodeType)])


def is_users(value):
    """Whether a function or a class is neither Python's, nor ours, nor of an installed package."""
    name = getattr(value, "__module__", None) or ""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return not any(part in _INSTALLED for part in pathlib.Path(file).parts)


@functools.lru_cache(4096)
def source_of(code):
    """The text of a `__code__` as it was when first asked for, for files are edited; its instructions where there is none."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(code)
    return repr(_steps(code))


def _steps(code):
    """The instructions of a code, without where anything lies in memory."""
    pairs = [(step.opname, step.argval) for step in dis.get_instructions(code)]
    return [(name, _steps(v) if isinstance(v, types.CodeType) else text_of(v)) for name, v in pairs]
