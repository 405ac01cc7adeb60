"""The types that signatures are written in, and how many threads products take.

Vectors are rows: k vectors of p numbers are (k, p).
"""

import concurrent.futures
import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

try:
    import threadpoolctl
except ImportError:  # It comes with the extra `cpu`; without it all is as right, and slower.
    threadpoolctl = None

Array: TypeAlias = npt.NDArray[Any]
# Called as `on_step(iteration, residual)` while a solver works.
OnStep: TypeAlias = Callable[[int, float], Any]


Part = TypeVar("Part")
Result = TypeVar("Result")
# Whether NumPy's products have left half of their threads.
_halved = contextvars.ContextVar("_halved", default=False)


@contextlib.contextmanager
def taking_turns() -> Iterator[None]:
    """A context in which NumPy's products leave half of their threads to whoever multiplies next.

    After a product its threads wait for more work by spinning, some hundredths of a second. Where
    products alternate with those of another library, each holds up the other: on two cores a
    small one of NumPy's then takes ten times as long. What can be halved works `side_by_side`.
    """
    if threadpoolctl is None:
        yield
        return
    libraries = _libraries()
    blas = [library for library in libraries.lib_controllers if library.user_api == "blas"]
    token = _halved.set(_halved.get() or any(b.num_threads > 1 for b in blas))
    try:
        with libraries.limit(limits={b.prefix: max(1, b.num_threads // 2) for b in blas}):
            yield
    finally:
        _halved.reset(token)


def side_by_side(
    work: Callable[[Part], Result], first: Part, second: Part
) -> tuple[Result, Result]:
    """work(first) and work(second), at the same time where NumPy's products are `taking_turns`.

    The thread for the first ends with it: none is left waiting.
    """
    if not _halved.get():
        return work(first), work(second)
    errors = np.geterr()  # Before NumPy 2 each thread has its own.

    def beside() -> Result:
        with np.errstate(**errors):
            return work(first)

    with concurrent.futures.ThreadPoolExecutor(1) as other:
        waiting = other.submit(beside)
        mine = work(second)
        return waiting.result(), mine


@functools.cache
def _libraries() -> Any:
    """Those of the process, found once: it takes milliseconds."""
    return threadpoolctl.ThreadpoolController()
