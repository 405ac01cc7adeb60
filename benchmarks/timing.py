"""Times of several things done in turn, so that a busy machine is unfair to none of them."""

import time

import numpy as np


def alternate(actions, repeats=5, limit=60.0):
    """Run each of `actions` in turn, `repeats` times, after one run that is not counted.

    Args:
        actions: dict from name to a function without arguments.
        limit: an action whose first run took longer than this many seconds is left out.

    Returns:
        `(medians, firsts, spreads)`, three dicts of seconds by name: the median, the first
        run, and the range from the fastest to the slowest.
    """
    firsts = {name: seconds(action) for name, action in actions.items()}
    kept = {name: action for name, action in actions.items() if firsts[name] <= limit}
    times = {name: [] for name in kept}
    for _ in range(repeats):
        for name, action in kept.items():
            times[name].append(seconds(action))
    medians = {name: float(np.median(t)) for name, t in times.items()}
    spreads = {name: [float(min(t)), float(max(t))] for name, t in times.items()}
    return medians, firsts, spreads


def seconds(action):
    """Seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
