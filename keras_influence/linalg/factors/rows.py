"""Rows of a tall matrix, known piece by piece: as products, written out, or where they are not zero.

A piece is the part of all rows in some positions of θ. Its kind says how it is held; what can be asked of it is the same.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.written import Formed, Sparse

Rows: TypeAlias = Outer | Formed | Sparse


def stacked(pieces: Sequence[Any]) -> Rows:
    """Rows of one kind, some below the others."""
    first = pieces[0]
    return first if len(pieces) == 1 else first.above(pieces[1:])
