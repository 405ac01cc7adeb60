"""How a model's loss is read on one data set, and what its terms are divided by, found out there.

Both are certified on examples from all of the data, against what Keras itself computes.
"""

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.added import what_is_added
from keras_influence.engine.loss.custom import custom_reading
from keras_influence.engine.loss.facts import Facts
from keras_influence.engine.loss.looks import (
    beside,
    called,
    close,
    fitting,
    halves,
    mixed_message,
    near,
    unit_of,
)
from keras_influence.engine.loss.readings import Compiled
from keras_influence.engine.loss.smooth import SMOOTH
from keras_influence.engine.loss.terms import SUM, RefusedLoss

# What divides a term that gives one number for a batch: its examples.
ALONE_MEAN = "mean of numbers"


def find_facts(model, batches, few, name, smooth, count):
    """`Facts` about a model's loss on its training data.

    Args:
        few: a few of its examples, from `looks.few_of`.
        name: the argument's name, for messages.
        smooth: let the smooth versions of the kinked losses stand in for them.
        count: a function of (reading, added) that gives the `counts` of the terms
            summed over all of the data, (terms, 3); only asked where they depend on the batch.

    Raises:
        ValueError: the data do not fit the loss, or one example's part in it cannot be told.
    """
    added = what_is_added(model, few, batches, name)
    found = check_loss(model, batches, few, name, added)
    if not _keras.has_default_loss(model):
        return Facts(found, added, batches.n, (found.total(batches.n),))
    reading = Compiled(tuple(SMOOTH.items()) if smooth else ())
    counts = _steady_counts(model, batches, few, name)
    if counts is None:
        counts = count(reading, added)
    divisors = [_divisor(kind, c, batches.n) for kind, c in zip(found, counts)]
    return Facts(
        reading, added, batches.n, tuple(float(batches.n / d) if d else 0.0 for d in divisors)
    )


def check_loss(model, batches, few, name, added="nothing"):
    """Certify that a loss can be taken apart by example on these data.

    Returns:
        How: a reading of a `compute_loss` of the user's; of Keras's own what each term is
        divided by.

    Raises:
        ValueError: it cannot.
    """
    if not _keras.has_default_loss(model):
        return custom_reading(model, batches, few, name)
    if added == "nothing" and not (_keras.has_compiled_loss(model) or _adds(model, few, name)):
        raise ValueError(
            "`model` should be compiled with a loss, `model.compile(loss=...)`, or add one in its "
            "layers by `add_loss`."
        )
    return _certified_kinds(model, batches, few, name)


def _adds(model, few, name):
    with called(model, few, name):
        return bool(float(_keras.added_losses(model)))


def _divisor(kind, counts, n):
    """What Keras divides a term by: nothing, the examples, or the entries that a mask leaves."""
    entries, left, steps = counts
    if kind == SUM:
        return 1.0
    return n if kind == ALONE_MEAN else entries * left / steps


def _certified_kinds(model, batches, few, name):
    """For each term what it is divided by; together they make up what Keras computes."""
    kinds = None
    for batch in _looked_at(batches, few):
        with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
            terms = Compiled().terms(model, parts, y_pred)
            _check_finite(terms, name)
            unit = unit_of(parts, y_pred)
            found = [_kind(term, name, unit) for term in terms]
            kinds = found if kinds is None else [a or b for a, b in zip(kinds, found)]
            if all(kinds):
                _compare(model, parts, y_pred, terms, kinds, name)
        if all(kinds):
            _check_apart(model, batch, terms, name, unit)
            break
    if any(term.divides is None for term in terms):
        _check_numbers(model, batches, few, name)
    # No example has a loss, so that it does not matter what it is divided by.
    return [kind or ALONE_MEAN for kind in kinds]


def _check_numbers(model, batches, few, name):
    """Hold losses that give one number for a batch against their examples', on every batch."""
    for batch in batches:
        with (
            called(model, beside(batch, few), name) as (parts, y_pred),
            fitting(name, parts, y_pred),
        ):
            for term in Compiled().terms(model, parts, y_pred):
                _kind(term, name, unit_of(parts, y_pred))


def _looked_at(batches, few):
    yield few
    for batch in batches:
        size = size_of(batch)
        yield take(batch, list(range(min(size, 64))) if size > 1 else [0, 0])


def _kind(term, name, unit):
    """`MEAN`, `SUM`, `ALONE_MEAN`, or None where these examples do not say."""
    if term.divides is not None:
        return term.divides
    alone, whole = term.examples.numpy(), float(term.whole)
    # Examples without a loss by themselves say nothing, unless there is one among them together.
    if not (np.abs(alone).max() > 1e-9 * unit or abs(whole) > 1e-6 * unit):
        return None
    if close(whole, alone.mean(), unit=unit):
        return ALONE_MEAN
    if close(whole, alone.sum(), unit=unit):
        return SUM
    raise RefusedLoss(mixed_message(len(alone), name, whole, alone.mean()))


def _compare(model, parts, y_pred, terms, kinds, name):
    """Raise unless the terms make up what Keras computes for these examples."""
    size = int(tf.nest.flatten(y_pred)[0].shape[0])
    ours = 0.0
    for term, kind in zip(terms, kinds):
        divisor = _divisor(kind, term.counts.numpy(), size)
        ours += float(tf.reduce_sum(term.examples)) / divisor if divisor else 0.0
    added, rest = (float(t) for t in Compiled().rest(model, parts, y_pred))
    x, y, w = parts
    whole = float(_keras.compute_loss(model, x, y, y_pred, w)) - added - rest
    unit = unit_of(parts, y_pred)
    if not close(ours, whole, unit=unit) and abs(ours - whole) > 1e-5 * (abs(added) + abs(rest)):
        raise RefusedLoss(mixed_message(size, name, whole, ours))


def _check_apart(model, batch, terms, name, unit):
    """Raise unless an example's part is the same among fewer others, and finite."""
    for rows in halves(size_of(batch)):
        with called(model, take(batch, rows), name) as (parts, y_pred):
            apart = Compiled().terms(model, parts, y_pred)
        for whole, own in zip(terms, apart):
            together = whole.examples.numpy()[rows]
            if not near(together, own.examples.numpy(), unit=unit):
                raise RefusedLoss(
                    mixed_message(len(rows), name, together.mean(), own.examples.numpy().mean())
                )


def _check_finite(terms, name):
    if not all(np.isfinite(term.examples.numpy()).all() for term in terms):
        raise RefusedLoss(
            f"The loss of some examples of `{name}` is NaN or infinite. Are the labels what the "
            "loss takes?"
        )


def _steady_counts(model, batches, few, name):
    """What the divisors are made of, (terms, 3), or None where that depends on the batch."""
    with called(model, few, name) as (parts, y_pred):
        terms = Compiled().terms(model, parts, y_pred)
    counts = np.array([term.counts.numpy() for term in terms], np.float64).reshape(-1, 3)
    size = size_of(few)
    alike = batches.alike or (counts[:, 0] == size).all()
    if any(term.masked for term in terms) or not alike:
        return None
    return counts * (batches.n / size)
