"""The types that signatures are written in, and how many threads products take.

Vectors are rows: k vectors of p numbers are (k, p).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy.typing as npt

try:
    import threadpoolctl
except ImportError:  # It comes with the extra `cpu`; without it all is as right, and slower.
    threadpoolctl = None

Array: TypeAlias = npt.NDArray[Any]
# Called as `on_step(iteration, residual)` while a solver works.
OnStep: TypeAlias = Callable[[int, float], Any]


def taking_turns() -> contextlib.AbstractContextManager[Any]:
    """A context in which NumPy's products leave half of their threads to whoever multiplies next.

    After a product its threads wait for more work by spinning, some hundredths of a second. Where
    products alternate with those of another library, each holds up the other: on two cores a
    small one of NumPy's then takes ten times as long.
    """
    if threadpoolctl is None:
        return contextlib.nullcontext()
    libraries = _libraries()
    blas = [library for library in libraries.lib_controllers if library.user_api == "blas"]
    return libraries.limit(limits={b.prefix: max(1, b.num_threads // 2) for b in blas})


@functools.cache
def _libraries() -> Any:
    """Those of the process, found once: it takes milliseconds."""
    return threadpoolctl.ThreadpoolController()
