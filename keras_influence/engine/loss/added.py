"""What layers add to the loss by `add_loss` and activity regularisers, as the batch sees it."""

import numpy as np

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.looks import called, close
from keras_influence.engine.loss.terms import MEAN, SUM
from keras_influence.errors import ObjectiveWarning, warn

# Examples in a part of a batch at least: never a batch of one.
_LEAST, _SEED = 2, 1_303


def what_is_added(model, few, batches, name):
    """One of "nothing", "constant", `MEAN`, `SUM`, "mixed": see `facts.Facts`.

    A few examples tell which, and it is held against all of the batches: a mean over those that are
    not masked is one over the examples as long as none of the few is.

    Args:
        model: the model.
        few: a few of the examples, as a batch.
        batches: all of them.
        name: what messages call them.
    """
    if _added(model, few, _rows(few), name) is None:
        return "nothing"
    kind = _kind(model, few, name)
    for batch in batches:
        if kind == "mixed":
            break
        if size_of(batch) < 2 * _LEAST or _is(kind, model, batch, name):
            continue
        kind = _kind(model, batch, name) if kind == "nothing" else "mixed"
    if kind == "mixed":
        _warn_of_mixed(model)
    if kind in (MEAN, SUM):
        _warn_of_constants(model, few, name)
    return kind


def _kind(model, few, name):
    """What is added for a few examples, as they are, twice each, and in halves."""
    rows = _rows(few)
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    # Each row twice: never a batch of one, the mean stays and the sum doubles.
    parts = (rows, rows * 2, first * 2, second * 2)
    whole, twice, a, b = (_added(model, few, part, name) for part in parts)
    if whole == 0 == twice == a == b:
        return "nothing"
    if close(twice, whole) and close(a, whole) and close(b, whole):
        return "constant"
    if close(twice, whole) and close(whole, (len(first) * a + len(second) * b) / len(rows)):
        return MEAN
    if close(twice, 2 * whole) and close(whole, (a + b) / 2):
        return SUM
    return "mixed"


def _is(kind, model, batch, name):
    """Whether what is added for a batch is of this kind, seen on its halves and on parts drawn at random."""
    rows = _rows(batch)
    drawn = np.random.default_rng(_SEED).permutation(rows).tolist()
    whole = _added(model, batch, rows, name)
    for order, cut in ((rows, len(rows) // 2), (drawn, max(_LEAST, len(rows) // 3))):
        parts = sorted(order[:cut]), sorted(order[cut:])
        a, b = (_added(model, batch, part, name) for part in parts)
        if not _agree(kind, whole, (a, b), [len(part) for part in parts]):
            return False
    return True


def _agree(kind, whole, found, sizes):
    """Whether what two parts of a batch add is what this kind makes of all of it."""
    if kind == "nothing":
        return whole == 0 == found[0] == found[1]
    if kind == "constant":
        return close(found[0], whole) and close(found[1], whole)
    together = sum(found) if kind == SUM else np.dot(found, sizes) / sum(sizes)
    return close(whole, together)


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
