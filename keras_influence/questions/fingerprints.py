"""What an answer depends on, as checksums and numbers that can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_influence import checksums
from keras_influence.engine.data.held import Batches
from keras_influence.engine.layers.reads import VARIABLE
from keras_influence.engine.problem import Problem

# Training examples whose losses tell one architecture or loss from another.
_PROBE = 8


def fingerprint(problem: Problem) -> dict[str, Any]:
    """What an answer depends on: checksums of weights and data, and a few losses."""
    return {
        "weights": checksums.fingerprint_of_weights(problem.model.weights),
        "data": fingerprint_of_data(problem, problem.train, "training data"),
        # Losses of examples by themselves, and what they count for in the objective.
        "losses": [*problem.losses([problem.train.head(_PROBE)]), *problem.facts.totals],
        "rest": problem.looks[1:],
        "reads": checksums.fingerprints_of_values(problem.reads.values),
        "variables_read": sorted(problem.reads.variables()),
    }


def fingerprint_of_data(problem: Problem, batches: Batches, title: str) -> str:
    """A checksum of all of some data, with a bar."""
    shown = problem.progress.over(batches, f"Checksum of the {title}", len(batches))
    return checksums.fingerprint_of_batches(shown)


def change_between(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not as it was between two fingerprints, in words; "" if nothing."""
    if saved["weights"] != now["weights"]:
        return "the weights have changed"
    if saved["data"] != now["data"]:
        return "the training data have changed"
    if not alike(saved["losses"], now["losses"]):
        return "the loss or the architecture has changed"
    # Which files of earlier versions do not have.
    if not alike(saved.get("rest", now["rest"]), now["rest"]):
        return "a regulariser, or what layers add by `add_loss`, has changed"
    name = other_value(saved, now, "reads")
    if name:
        return f"`{name}`, which the model or its loss reads, has changed"
    read = saved.get("variables_read", []), now["variables_read"]
    return VARIABLE if read[0] != read[1] and len(read[0]) == len(read[1]) else ""


def other_value(saved: dict[str, Any], now: dict[str, Any], key: str) -> str:
    """The first name under which another value is read than before, of those read both times; "" if none.

    Files of earlier versions have none.
    """
    before, after = saved.get(key, {}), now[key]
    names = [name for name in before if before[name] != after.get(name, before[name])]
    return names[0].rpartition(" ")[0] if names else ""


def alike(saved: list[float], now: list[float]) -> bool:
    """Not to the last bit: another machine sums in another order."""
    return len(saved) == len(now) and np.allclose(saved, now, rtol=1e-3, atol=1e-6)
