"""What is said of scores for which no system was solved, by what they were made with."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to scores without a solve.

    Attributes:
        line: a function of scores, that gives what they are and of what, a few words each, for their `repr`.
        curvature: what stands in the place of a curvature, in sentences, for a report.
    """

    line: Callable
    curvature: str


def _summed(scores):
    solver = scores.solver["class_name"]
    return "summed by", f"{solver} over {scores.passes:.0f} checkpoints, no curvature"


def _replayed(scores):
    near = scores.details["rounding"]
    words = "to the bit" if not near else f"to {near:.1e} of a step"
    return "derivative", f"of {scores.details['steps']} steps of training, replayed {words}"


def _parts(scores):
    left = f"training has left {scores.residual.max():.1e} of a gradient there"
    return "parts of", f"the last kernel, with L2 of {scores.damping / 2:g}; {left}"


def _unrolled(scores):
    segments = f"{scores.details['segments']} segments of training"
    return "unrolled", f"{segments}, {scores.passes:.0f} checkpoints"


def _projected(scores):
    size = f"{scores.details['dim']} dimensions, damping {scores.damping:g}"
    return "projected", f"to {size}; order means something, size does not"


# By the `class_name` of their `solver`.
METHODS = {
    "TracIn": Method(
        _summed,
        "None. These scores are a sum along the checkpoints of training: how much the visits to "
        "a training example lowered a test loss.",
    ),
    "Replay": Method(
        _replayed,
        "None. These scores are the derivative of the training run, through all of its steps.",
    ),
    "Representer": Method(
        _parts,
        "None. These scores are the terms of which the last layer's kernel is the sum.",
    ),
    "SOURCE": Method(
        _unrolled,
        "The Gauss-Newton matrix, averaged over each of a few segments of training: the scores follow "
        "through them what a missing example would have changed.",
    ),
    "TRAK": Method(
        _projected,
        "In its place the products of randomly projected gradients, without the loss's second "
        "derivative: the order of the scores means something, their size does not.",
    ),
}


def method_of(scores):
    """The `Method` of scores without a solve."""
    return METHODS[scores.solver["class_name"]]
