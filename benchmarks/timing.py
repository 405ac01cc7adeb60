"""Times of several things done in turn, so that a busy machine is unfair to none of them."""

import time

import numpy as np

# An action that takes longer than this many seconds is warm by itself.
_LONG = 2.0


def alternate(actions, repeats=5, limit=60.0, warm=False):
    """Run each of `actions` in turn, `repeats` times, after one run that is not counted.

    Args:
        actions: dict from name to a function without arguments.
        limit: an action whose first run took longer than this many seconds is left out.
        warm: run each one just before it is timed, as where it is repeated; else it pays for the
            memory and the caches that the action before it has left.

    Returns:
        `(medians, firsts, spreads, processor)`, dicts of seconds by name: the median, the
        first run, the range from the fastest to the slowest, and the median of the seconds
        that this process spent on its processors, which other processes do not lengthen.
    """
    firsts = {name: seconds(action)[0] for name, action in actions.items()}
    kept = {name: action for name, action in actions.items() if firsts[name] <= limit}
    times = {name: [] for name in kept}
    for _ in range(repeats):
        for name, action in kept.items():
            if warm and firsts[name] <= _LONG:
                action()
            times[name].append(seconds(action))
    clocks = {name: np.array(t) for name, t in times.items()}
    medians = {name: float(np.median(t[:, 0])) for name, t in clocks.items()}
    spreads = {name: [float(t[:, 0].min()), float(t[:, 0].max())] for name, t in clocks.items()}
    processor = {name: float(np.median(t[:, 1])) for name, t in clocks.items()}
    return medians, firsts, spreads, processor


def seconds(action):
    """Seconds that one call takes, by the clock and of processor time."""
    start, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - used
