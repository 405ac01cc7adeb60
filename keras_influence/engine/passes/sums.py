"""Sums of many parts in a fixed order that a cluster can follow: eights, and eights of those."""

import itertools
import operator

_FAN = 8


def added(parts):
    """The sum of some parts, each an array, or another sum, or a list of parts, one after another."""
    parts = iter(parts)
    total = next(parts)
    second = next(parts, None)
    if second is None:
        return total
    # What is given may be held by others: only what is new is added to in place.
    total = _map(operator.add, total, second)
    for part in parts:
        total = _map(operator.iadd, total, part)
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
