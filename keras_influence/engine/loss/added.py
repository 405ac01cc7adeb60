"""What layers add to the loss by `add_loss` and activity regularisers, as the batch sees it."""

import itertools
from typing import NamedTuple

import numpy as np

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.looks import beside, called, close
from keras_influence.engine.loss.terms import MEAN, SUM
from keras_influence.errors import ObjectiveWarning, warn

# Examples in a part of a batch at least: never a batch of one.
_LEAST, _SEED = 2, 1_303
# What is the same for any examples is so up to rounding: beside a constant those that differ do so by little.
_EXACT = 1e-6


class _Look(NamedTuple):
    """What is added for a batch, and for parts of it that hold each of its examples so many times.

    Attributes:
        whole: what is added for the batch.
        parts: what is added for each part.
        sizes: how many examples each part has.
        times: how often an example is in them.
    """

    whole: float
    parts: np.ndarray
    sizes: np.ndarray
    times: int


def what_is_added(model, few, batches, name):
    """One of "nothing", "constant", `MEAN`, `SUM`, "mixed": see `facts.Facts`.

    The first of those that a few examples and all of the batches leave, so that what is seen of none
    of them is concluded from none: a mean over those that are not masked is one over the examples as
    long as none is, and rows that add nothing say nothing.

    Args:
        model: the model.
        few: a few of the examples, as a batch.
        batches: all of them.
        name: what messages call them.
    """
    if _added(model, few, _rows(few), name) is None:
        return "nothing"
    kinds = list(_FITS)
    for batch in itertools.chain([few], batches):
        looks = _looks(model, beside(batch, few), name)
        kinds = [kind for kind in kinds if all(map(_FITS[kind], looks))]
        if not kinds:
            _warn_of_mixed(model)
            return "mixed"
    if kinds[0] in (MEAN, SUM):
        _warn_of_constants(model, few, name)
    return kinds[0]


def _looks(model, batch, name):
    """`_Look`s at a batch in halves and in parts drawn at random; at a small one twice, and example by example."""
    rows, cuts = _rows(batch), []
    if len(rows) < 2 * _LEAST:
        cuts += [([rows * 2], 2), ([[row] * 2 for row in rows], 2)]
    else:
        drawn = np.random.default_rng(_SEED).permutation(rows).tolist()
        for order, cut in ((rows, len(rows) // 2), (drawn, max(_LEAST, len(rows) // 3))):
            cuts.append(([sorted(order[:cut]), sorted(order[cut:])], 1))
    whole = _added(model, batch, rows, name)
    return [
        _Look(
            whole,
            np.array([_added(model, batch, part, name) for part in parts]),
            np.array([len(part) for part in parts]),
            times,
        )
        for parts, times in cuts
    ]


# Whether a look is what each kind makes of it.
_FITS = {
    "nothing": lambda look: look.whole == 0 and not look.parts.any(),
    "constant": lambda look: all(close(part, look.whole, _EXACT) for part in look.parts),
    MEAN: lambda look: close(look.whole, look.parts @ look.sizes / look.sizes.sum()),
    SUM: lambda look: close(look.whole, look.parts.sum() / look.times),
}


def _warn_of_mixed(model):
    names = [layer.name for layer in _keras.layers_of(model) if _keras.adds_losses(layer)]
    warn(
        f"What {', '.join(names) or 'the model'} adds to the loss by `add_loss` is neither a mean "
        "nor a sum over the examples of a batch: it is in the curvature, as the batches that it is "
        "computed in have it, and in no example's own part. Add the mean over the batch of one number for each example.",
        ObjectiveWarning,
    )


def _warn_of_constants(model, few, name):
    """Say that what some layers add beside others is no example's own."""
    rows = _rows(few)
    pairs = zip(*(_each(model, few, part * 2, name) for part in (rows[::2], rows[1::2])))
    names = {layer.name for (layer, one), (_, other) in pairs if one == other != 0}
    if names:
        warn(
            f"What {', '.join(sorted(names))} adds to the loss by `add_loss` is the same for any "
            "examples, beside layers that add a mean or a sum over them: it is counted as a part of "
            "each example's loss. Give it as a `kernel_regularizer`, which is not.",
            ObjectiveWarning,
        )


def _each(model, few, rows, name):
    """Pairs of a layer and one of the numbers that it adds for some rows."""
    with called(model, take(few, rows), name):
        layers = _keras.layers_of(model)
        added = [(layer, loss) for layer in layers for loss in _keras.losses_added_by(layer)]
        return [(layer, float(np.sum(loss))) for layer, loss in added]


def _rows(batch):
    return list(range(size_of(batch)))


def _added(model, few, rows, name):
    """The sum of what is added for some rows, or None."""
    with called(model, take(few, rows), name):
        if not any(map(_keras.losses_added_by, _keras.layers_of(model))):
            return None
        return float(_keras.added_losses(model))
