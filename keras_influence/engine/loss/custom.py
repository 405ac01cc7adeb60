"""How a `compute_loss` of the user's is read: by sample weights, or example by example."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.looks import TOLERANCE, beside, called, close, halves, unit_of
from keras_influence.engine.loss.readings import Alone, Weighted
from keras_influence.engine.loss.refusals import fitting, mixed_message
from keras_influence.engine.loss.terms import RefusedLoss
from keras_influence.errors import ObjectiveWarning, warn

# How closely what layers add is to account for the change of a loss, and what of the loss itself is rounding.
_FIT, _ROUNDING = 1e-3, 1e-6
# How closely a loss is to be linear in weights, of which few of a large batch may be clipped.
_LINEAR = 1e-4


def custom_reading(model, batches, few, name):
    """A `Weighted` or an `Alone` that gives what `compute_loss` gives, on all of the data.

    Which one is decided on a few examples, and held against every batch: labels that are ignored
    or masked, which change what a loss divides by, weights that are clipped, or outputs that are
    penalised beyond a bound may be in few of them.

    Raises:
        ValueError: neither does.
    """
    reading = _weighted(model, few, name)
    if reading is not None and all(
        _is_all_weighted(model, reading, beside(batch, few), name)
        for batch in itertools.chain([few], batches)
    ):
        reading = dataclasses.replace(reading, adds=_adds(model, reading, batches, few, name))
    else:
        reading = _alone(model, few, name)
    holds = _weighs_evenly if isinstance(reading, Weighted) else _adds_up
    for batch in batches:
        if not holds(model, reading, beside(batch, few), name):
            raise RefusedLoss(
                "The model's `compute_loss` is a mean or sum over some examples and none over "
                f"others of `{name}`: it divides by something that depends on the batch, such as a "
                "mask, labels that are ignored, or the sum of the weights. Compile the model with "
                "that loss in place of a `compute_loss` of its own, or divide by the batch's size."
            )
    return reading


def _weighted(model, few, name):
    """A `Weighted` that the few examples bear out, or None."""
    for axes in range(_rank(model, few, name)):
        reading = Weighted(axes=axes)
        try:
            if not _is_linear(model, reading, few, name):
                continue
        except (ValueError, TypeError, tf.errors.OpError):  # Weights of another shape, perhaps.
            continue
        for sums in (False, True):
            kind = dataclasses.replace(reading, sums=sums)
            if _weighs_evenly(model, kind, few, name):
                return kind
    return None


def _rank(model, few, name):
    """How many shapes of ω there are to try: (b,), (b, 1), ..."""
    with called(model, few, name) as (_, y_pred):
        return max(1, *(leaf.shape.rank - 1 for leaf in tf.nest.flatten(y_pred)))


def _is_all_weighted(model, reading, batch, name):
    """Whether a loss is linear in the weights of these examples, and of their outputs holds nothing else."""
    if not _is_linear(model, reading, batch, name, _LINEAR, or_flat=True):
        return False
    with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
        leaves = tf.nest.flatten(y_pred)
        nothing = tf.zeros([size_of(batch)], leaves[0].dtype)
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            rest = reading.loss(model, parts, y_pred, nothing)
        slopes = [g for g in tape.gradient(rest, leaves) if g is not None]
    return not any((np.abs(tf.convert_to_tensor(g).numpy()) > 0).any() for g in slopes)


def _adds(model, reading, batches, few, name):
    """How often the loss holds what layers add, seen at weights of 0 where that changes.

    Once as a rule, beside the weights' regularisers; a multiple of Keras's own loss holds it so many
    times, and a loss that leaves it out never.
    """
    with called(model, few, name):
        if not any(map(_keras.losses_added_by, _keras.layers_of(model))):
            return 0.0
    looks = [_rest_and_added(model, reading, few, name)]
    for batch in batches:
        size = size_of(batch)
        parts = (list(range(size)), *halves(size)) if size > 1 else ()
        looks += [_rest_and_added(model, reading, take(batch, rows), name) for rows in parts]
    rest, added = np.array(looks).T
    change = added - added.mean()
    if np.abs(change).max() <= _ROUNDING * np.abs(added).max():
        together = added + float(_keras.regularisers(model))
        return float(all(map(close, rest, together)))
    factor = float(change @ rest / (change @ change))
    left = rest - factor * added
    allowed = _FIT * np.abs(change).max() + _ROUNDING * np.abs(rest).max()
    if np.abs(left - left.mean()).max() > allowed:
        warn(
            "The model's `compute_loss` takes what layers add by `add_loss` in another way than by a "
            "factor: it is in the curvature, and in no example's own part. Add `sum(self.losses)` to "
            "the loss.",
            ObjectiveWarning,
        )
        return 0.0
    whole = float(np.round(factor))
    return whole if abs(factor - whole) * np.abs(change).max() <= allowed else factor


def _rest_and_added(model, reading, batch, name):
    """The loss at weights of 0, and what layers have added."""
    with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
        nothing = tf.zeros([size_of(batch)], tf.nest.flatten(y_pred)[0].dtype)
        rest = reading.loss(model, parts, y_pred, nothing)
        return float(rest), float(_keras.added_losses(model))


def _holds_rest(model, parts, y_pred, whole, rest):
    """Whether A and R are in the loss, seen where weights are other and the outputs are not.

    Raises:
        ValueError: the loss depends on the weights in yet another way.
    """
    x, y, w = parts
    other = [(v, 1.1 * tf.convert_to_tensor(v.value)) for v in model.trainable_variables]
    with _keras.standing_at(model, other):
        left = float(_keras.compute_loss(model, x, y, y_pred, w))
        regularised = float(_keras.regularisers(model))
    if close(whole, left) and not close(rest, regularised):
        return False
    if close(whole - left, rest - regularised):
        return rest != 0
    raise RefusedLoss(
        "The model's `compute_loss` holds something that `sample_weight` does not multiply and that depends "
        "on the weights not by the model's output alone, so the part of one example cannot be told. "
        "Multiply all of each example's loss by `sample_weight` before the mean."
    )


def _is_linear(model, reading, few, name, tolerance=TOLERANCE, or_flat=False):
    """Euler's identity: L(ω) = L(0) + Σ ω_i ∂L/∂ω_i, with a slope that is not zero, or may be."""
    with called(model, few, name) as (parts, y_pred):
        dtype = tf.nest.flatten(y_pred)[0].dtype
        omega = tf.constant(np.linspace(0.5, 1.5, size_of(few)), dtype)
        with tf.GradientTape() as tape:
            tape.watch(omega)
            value = reading.loss(model, parts, y_pred, omega)
        slope = tape.gradient(value, omega)
        if slope is None or not (or_flat or np.abs(slope.numpy()).max() > 0):
            return False
        contributed = float(tf.reduce_sum(omega * slope))
        rest = float(value - reading.loss(model, parts, y_pred, 0 * omega))
        if abs(rest - contributed) <= _ROUNDING * abs(float(value)):
            return True
        return close(rest, contributed, tolerance, unit_of(parts, y_pred))


def _weighs_evenly(model, reading, batch, name):
    """Whether an example counts among fewer others what the mean or sum says."""
    size = size_of(batch)
    whole = _contributions(model, reading, batch, list(range(size)), name)
    # Halves of very few examples are all of them; each twice is not.
    twice = [list(range(size)) * 2] if size < 4 else []
    for part in (*halves(size), *twice):
        share = 1.0 if reading.sums else len(part) / size
        apart = _contributions(model, reading, batch, part, name) * share
        if not np.allclose(apart, whole[part], rtol=1e-3, atol=1e-3 * np.abs(whole).max()):
            return False
    return True


def _contributions(model, reading, batch, rows, name):
    """∂L/∂ω of some of the examples as one batch."""
    with (
        called(model, take(batch, rows), name) as (parts, y_pred),
        fitting(name, parts, y_pred),
    ):
        omega = tf.ones([len(rows)], tf.nest.flatten(y_pred)[0].dtype)
        with tf.GradientTape() as tape:
            tape.watch(omega)
            value = reading.loss(model, parts, y_pred, omega)
        return tape.gradient(value, omega).numpy().astype(np.float64)


def _adds_up(model, reading, batch, name):
    """Whether the examples' losses by themselves make up the batch's."""
    with called(model, batch, name) as (parts, y_pred), fitting(name, parts, y_pred):
        x, y, w = parts
        whole = float(_keras.compute_loss(model, x, y, y_pred, w))
        whole -= float(sum(reading.rest(model, parts, y_pred)))
        losses = reading.losses(model, parts, y_pred).numpy().astype(np.float64)
    together = losses.sum() if reading.sums else losses.mean()
    return close(whole, together, unit=unit_of(parts, y_pred))


def _alone(model, few, name):
    """An `Alone` whose examples' losses make up the loss of the few examples as one batch."""
    with called(model, few, name) as (parts, y_pred), fitting(name, parts, y_pred):
        whole = float(_keras.compute_loss(model, *parts[:2], y_pred, parts[2]))
        rest = float(_keras.added_losses(model)) + float(_keras.regularisers(model))
    adds = _holds_rest(model, parts, y_pred, whole, rest)
    for sums in (False, True):
        if _adds_up(model, Alone(sums, adds), few, name):
            return Alone(sums, adds)
    with called(model, few, name) as (parts, y_pred), fitting(name, parts, y_pred):
        losses = Alone(adds=adds).losses(model, parts, y_pred).numpy()
    raise RefusedLoss(
        "The model's `compute_loss` is not linear in `sample_weight`, or ignores it, and is no "
        f"mean over examples either. {mixed_message(len(losses), name, whole, losses.mean())}"
    )
