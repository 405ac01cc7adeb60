"""What a solver has computed once, as plain arrays and back."""

import dataclasses
from typing import Any

import numpy as np

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.blocks import Block, Channels
from keras_influence.linalg.factors.contributions import ContributionsFactor
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.two_level import CoupledFactor, TwoLevelFactor
from keras_influence.linalg.factors.written import Formed, Sparse

FACTORS: dict[str, type] = {
    c.__name__: c
    for c in (
        *(Block, Channels, Kronecker, CoupledFactor, TwoLevelFactor, DenseFactor, LowRank),
        *(ContributionsFactor, Outer, Formed, Sparse, Positions),
    )
}


def pack(value: Any, arrays: list[Array]) -> Any:
    """A factor as a tree of dicts, lists and numbers that JSON can hold.

    Args:
        value: None, a number, a string, an array, a tuple of these or one of `FACTORS`.
        arrays: a list that the arrays are added to; the tree has their positions.
    """
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, tuple):
        return [pack(item, arrays) for item in value]
    if type(value) in FACTORS.values():
        fields = {f.name: pack(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    return value


def unpack(tree: Any, arrays: list[Array]) -> Any:
    """What `pack` was given."""
    if isinstance(tree, list):
        return tuple(unpack(item, arrays) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    fields = {name: unpack(value, arrays) for name, value in tree["fields"].items()}
    return FACTORS[tree["class"]](**fields)
