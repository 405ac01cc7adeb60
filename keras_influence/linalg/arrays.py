"""The types that signatures are written in. Vectors are rows: k vectors of p numbers are (k, p)."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
# Called as `on_step(iteration, residual)` while a solver works.
OnStep: TypeAlias = Callable[[int, float], Any]
