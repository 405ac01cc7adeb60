"""Whether a compiled loss is its examples' losses put together, by a mean or a sum, on all of the data.

What it makes of each is found out on a few examples. Where layers or losses are the user's own, batches
are held against parts of them, all of them unless they are very many: what mixes examples may do so
for few of them alone, such as those that are masked, or larger than a bound.
"""

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.looks import (
    FEW,
    beside,
    called,
    close,
    halves,
    is_plain,
    near,
    spread,
    unit_of,
)
from keras_influence.engine.loss.readings import Compiled
from keras_influence.engine.loss.refusals import fitting, mixed_message
from keras_influence.engine.loss.runs import mixes_message
from keras_influence.engine.loss.terms import SUM, RefusedLoss

# What divides a term that gives one number for a batch: its examples.
ALONE_MEAN = "mean of numbers"
# A batch is cut up by chance, the same at each call; so many batches are, at most.
_SEED, _MOST = 4_211, 64


def certified_kinds(model, batches, few, name):
    """For each term what it is divided by; together they make up what Keras computes.

    Raises:
        ValueError: one example's part in the loss cannot be told.
    """
    kinds = None
    for batch in _looked_at(batches, few):
        with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
            terms, found = _terms(model, parts, y_pred, batches, few, name)
            kinds = found if kinds is None else [a or b for a, b in zip(kinds, found)]
            if all(kinds):
                _compare(model, parts, y_pred, terms, kinds, name)
        if all(kinds):
            _check_part(model, batch, [], terms, halves(size_of(batch)), name)
            break
    check_all(model, batches, few, name, any(term.divides is None for term in terms))
    # No example has a loss, so that it does not matter what it is divided by.
    return [kind or ALONE_MEAN for kind in kinds]


def divisor(kind, counts, n):
    """What Keras divides a term by: nothing, the examples, or the entries that a mask leaves."""
    entries, left, steps = counts
    if kind == SUM:
        return 1.0
    return n if kind == ALONE_MEAN else entries * left / steps


def check_all(model, batches, few, name, by_numbers=False):
    """Hold batches against parts of them, unless layers and losses are Keras's own.

    Args:
        by_numbers: whether some loss gives one number for a batch, as Keras's Dice does too: then all are.

    Raises:
        ValueError: examples are mixed, by the model or by its loss.
    """
    own_loss = _keras.has_default_loss(model) and not _keras.has_losses_of_keras(model)
    of_losses = own_loss or by_numbers
    if not of_losses and all(map(is_plain, _keras.layers_of(model))):
        return
    count = len(batches)
    looked_at = {*spread(count, count if by_numbers else _MOST).tolist()}
    for number, batch in enumerate(batches):
        if number not in looked_at:
            continue
        try:
            _check_batch(model, beside(batch, few), of_losses, batches, few, name)
        except ValueError as error:
            # What a kernel will say more of.
            if not isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise


def _check_batch(model, batch, of_losses, batches, few, name):
    with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
        terms = _terms(model, parts, y_pred, batches, few, name)[0] if of_losses else []
    outputs = [leaf.numpy() for leaf in tf.nest.flatten(y_pred)]
    _check_part(model, batch, outputs, terms, _cuts(size_of(batch)), name)


def _looked_at(batches, few):
    yield few
    for batch in batches:
        size = size_of(batch)
        yield take(batch, list(range(min(size, 64))) if size > 1 else [0, 0])


def _cuts(size):
    """The rows of parts of a batch, never of a single one.

    What is rare is in one of the first two at most, and what is not is no like part of the third.
    """
    if size < 4:
        return [[row] * 2 for row in range(size)]
    rows, count = np.random.default_rng(_SEED).permutation(size), min(FEW, size // 2)
    parts = rows[:count], rows[-count:], rows[: max(2, count // 2)]
    return [sorted(part.tolist()) for part in parts]


def _terms(model, parts, y_pred, batches, few, name):
    """The `Term`s of some examples, and what each is divided by, None where these do not say."""
    leaves = tf.nest.flatten(y_pred)
    leaves += [logits for leaf in leaves if (logits := _keras.logits_of(leaf)) is not None]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(leaves)
        terms = Compiled().terms(model, parts, y_pred)
    _check_finite(terms, model, batches, few, name)
    unit = unit_of(parts, y_pred)
    kinds = [_kind(term, name, unit) for term in terms]
    for term, kind in zip(terms, kinds):
        if term.divides is None and kind is not None:
            # Beside a constant that is large, numbers that differ do so by little.
            share = 1.0 if kind == SUM else 1 / len(term.examples)
            _check_slopes(*(tape.gradient(t, leaves) for t in (term.whole, term.examples)), share)
    return terms, kinds


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


def _check_slopes(whole, alone, share):
    """Raise unless the loss of some examples has the gradient of their losses together."""
    for together, own in zip(whole, alone):
        pair = [0.0 if g is None else tf.convert_to_tensor(g).numpy() for g in (together, own)]
        if not near(*np.broadcast_arrays(pair[0], share * pair[1])):
            raise RefusedLoss(
                "The model's loss is not a mean or sum over examples: its gradient is not that of "
                "their own losses put together. Use a loss that gives each example a value of its own "
                "(in a function of your own, a mean over the last axes only, not over the first)."
            )


def _compare(model, parts, y_pred, terms, kinds, name):
    """Raise unless the terms make up what Keras computes for these examples."""
    size = int(tf.nest.flatten(y_pred)[0].shape[0])
    ours = 0.0
    for term, kind in zip(terms, kinds):
        by = divisor(kind, term.counts.numpy(), size)
        ours += float(tf.reduce_sum(term.examples)) / by if by else 0.0
    added, rest = (float(t) for t in Compiled().rest(model, parts, y_pred))
    x, y, w = parts
    whole = float(_keras.compute_loss(model, x, y, y_pred, w)) - added - rest
    unit = unit_of(parts, y_pred)
    if not close(ours, whole, unit=unit) and abs(ours - whole) > 1e-5 * (abs(added) + abs(rest)):
        raise RefusedLoss(mixed_message(size, name, whole, ours))


def _check_part(model, batch, outputs, terms, cuts, name):
    """Raise unless examples have the same outputs and losses among fewer others, and finite ones.

    Args:
        outputs: arrays, of the whole batch.
        terms: its `Term`s.
        cuts: the rows of each part.
    """
    for rows in cuts:
        with called(model, take(batch, rows), name) as (parts, y_pred):
            apart = Compiled().terms(model, parts, y_pred) if terms else []
        for whole, own in zip(outputs, tf.nest.flatten(y_pred)):
            if not near(whole[rows], own.numpy()):
                raise ValueError(mixes_message(name))
        for whole, own in zip(terms, apart):
            together = whole.examples.numpy()[rows]
            if not near(together, own.examples.numpy(), unit=unit_of(parts, y_pred)):
                raise RefusedLoss(
                    mixed_message(len(rows), name, together.mean(), own.examples.numpy().mean())
                )


def _check_finite(terms, model, batches, few, name):
    """Raise unless these are finite, and name the first example of all of the data that has no finite loss."""
    if not _not_finite(terms).size:
        return
    wholes = [float(term.whole) for term in terms if term.whole is not None]
    if wholes and np.isfinite(wholes).all():
        raise RefusedLoss(
            f"The loss of some examples of `{name}` by themselves is NaN or infinite, that of their "
            "batch is not: it divides by what is left of the batch, and of these examples nothing is. "
            "Divide by the size of the batch."
        )
    start = 0
    for batch in batches:
        about = model, beside(batch, few), name
        with called(*about) as (parts, y_pred), fitting(name, parts, y_pred):
            found = Compiled().terms(model, parts, y_pred)
        bad = _not_finite(found)
        if bad.size and bad[0] < size_of(batch):
            raise RefusedLoss(
                _without_number(found, bad[0], f"example {start + bad[0]} of `{name}`")
            )
        start += size_of(batch)
    raise RefusedLoss(f"The loss of some examples of `{name}` is NaN or infinite among others.")


def _not_finite(terms):
    """The rows of a batch without a finite loss."""
    sums = sum(term.examples.numpy().astype(np.float64) for term in terms)
    return np.flatnonzero(~np.isfinite(sums))


def _without_number(terms, row, example):
    """What to say of an example whose loss is NaN or infinite."""
    outputs = [leaf[row].numpy() for term in terms for leaf in tf.nest.flatten(term.output)]
    if all(np.isfinite(output).all() for output in outputs):
        return f"The loss of {example} is NaN or infinite. Is its label what the loss takes?"
    return (
        f"The model's output for {example} is NaN or infinite, and so is its loss. Is there a mean over "
        "a mask that leaves nothing, as where an example is all padding, or another division by 0?"
    )
