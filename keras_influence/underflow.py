"""What is too small for its type is 0, whatever the user's `np.seterr` makes of it elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def to_zero(function: Function) -> Function:
    """The same function, in which NumPy takes an underflow for the 0 that it gives.

    The gradients of a model that is sure of its outputs do underflow; what the user has set is
    as before afterwards.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(under="ignore"):
            return function(*args, **kwargs)

    return cast(Function, run)
