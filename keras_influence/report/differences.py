"""In which features two examples of a table differ most."""

import numpy as np

# Features that are named of a pair.
_SHOWN = 3


def spread_of(vectors):
    """The standard deviation of each feature over some examples, a dict; 0 where it is constant.

    Args:
        vectors: list of dicts from features to numbers.
    """
    found = {}
    for vector in vectors:
        for name, value in vector.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.std(values)) for name, values in found.items()}


def largest(here, there, spread):
    """The features in which two examples differ most, in units of each one's spread.

    Args:
        here, there: dicts from features to numbers.
        spread: dict from features to standard deviations.

    Returns:
        List of (feature, number here, number there), the largest difference first.
    """
    sizes = {
        name: abs(there[name] - value) / spread[name]
        for name, value in here.items()
        if name in there and spread.get(name, 0) > 0 and there[name] != value
    }
    chosen = sorted(sizes, key=sizes.get, reverse=True)[:_SHOWN]
    return [(name, here[name], there[name]) for name in chosen]
