"""Sums of many parts in a fixed order that a cluster can follow: eights, and eights of those."""

import itertools

import numpy as np

_FAN = 8


def added(parts):
    """The sum of some parts, each an array or a list of parts, one after another."""
    parts = iter(parts)
    total = next(parts)
    second = next(parts, None)
    if second is None:
        return total
    # What is given may be held by others: only the new arrays are added to in place.
    total = _map(np.add, total, second)
    for part in parts:
        _map(lambda t, a: np.add(t, a, out=t), total, part)
    return total


def in_eights(parts, add=added):
    """The sums of each eight neighbours, the last of fewer."""
    parts = iter(parts)
    while some := list(itertools.islice(parts, 1)):
        yield add(itertools.chain(some, itertools.islice(parts, _FAN - 1)))


def summed(parts, count):
    """The sum of `count` parts, one of each height held at a time."""
    while count > 1:
        parts, count = in_eights(parts), -(-count // _FAN)
    return next(iter(parts))


def _map(function, *structures):
    if isinstance(structures[0], (list, tuple)):
        return [_map(function, *parts) for parts in zip(*structures)]
    return function(*structures)
