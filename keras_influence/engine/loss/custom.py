"""How a `compute_loss` of the user's is read: by sample weights, or example by example."""

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.sizes import batch_size
from keras_influence.engine.loss.looks import (
    called,
    close,
    fitting,
    halves,
    mixed_message,
    rows_of_batch,
)
from keras_influence.engine.loss.readings import Alone, Weighted
from keras_influence.engine.loss.terms import MEAN, SUM, RefusedLoss


def custom_reading(model, batches, few, name):
    """A `Weighted` or an `Alone` that gives what `compute_loss` gives on a few examples.

    Raises:
        ValueError: neither does.
    """
    adds = _adds(model, few, name)
    if _is_linear(model, few, name):
        kind = _kind_of_weighted(model, few, name)
        if kind is not None:
            return Weighted(sums=kind == SUM, adds=adds)
    return _alone(model, few, name)


def _adds(model, few, name):
    """Whether the loss holds what layers add and the weights' regularisers, seen at weights of 0."""
    with called(model, few, name) as (parts, y_pred), fitting(name):
        nothing = tf.zeros([batch_size(few)], tf.nest.flatten(y_pred)[0].dtype)
        rest = float(Weighted.loss(model, parts, y_pred, nothing))
        added = float(_keras.added_losses(model))
        return added != 0 and close(rest, added + float(_keras.regularisers(model)))


def _holds_rest(model, parts, y_pred, whole, rest):
    """Whether A and R are in the loss, seen where weights are other and the outputs are not.

    Raises:
        ValueError: the loss depends on the weights in yet another way.
    """
    x, y, w = parts
    other = [(v, 1.1 * tf.convert_to_tensor(v.value)) for v in model.trainable_variables]
    with _keras.looking_into(model), keras.StatelessScope(other, collect_losses=True):
        left = float(_keras.compute_loss(model, x, y, y_pred, w))
        regularised = float(_keras.regularisers(model))
    if close(whole, left) and not close(rest, regularised):
        return False
    if close(whole - left, rest - regularised):
        return rest != 0
    raise RefusedLoss(
        "The model's `compute_loss` ignores `sample_weight`, and depends on the weights not by the "
        "model's output alone, so the part of one example cannot be told. Multiply each example's "
        "loss by `sample_weight` before the mean."
    )


def _is_linear(model, few, name):
    """Euler's identity: L(ω) = L(0) + Σ ω_i ∂L/∂ω_i, with a slope that is not zero."""
    with called(model, few, name) as (parts, y_pred), fitting(name):
        dtype = tf.nest.flatten(y_pred)[0].dtype
        omega = tf.constant(np.linspace(0.5, 1.5, batch_size(few)), dtype)
        with tf.GradientTape() as tape:
            tape.watch(omega)
            value = Weighted.loss(model, parts, y_pred, omega)
        slope = tape.gradient(value, omega)
        if slope is None or not np.abs(slope.numpy()).max() > 0:
            return False
        contributed = float(tf.reduce_sum(omega * slope))
        return close(float(value - Weighted.loss(model, parts, y_pred, 0 * omega)), contributed)


def _kind_of_weighted(model, few, name):
    """Whether the loss is a mean or a sum over its batch; None if it is neither."""
    size = batch_size(few)
    first, second = halves(size)
    whole = _contributions(model, few, list(range(size)), name)
    kinds = {MEAN: lambda part: len(part) / size, SUM: lambda part: 1.0}
    for kind, share in kinds.items():
        if all(
            np.allclose(
                _contributions(model, few, part, name) * share(part), whole[part], rtol=1e-3
            )
            for part in (first, second)
        ):
            return kind
    return None


def _contributions(model, few, rows, name):
    """∂L/∂ω of some of the few examples as one batch."""
    with called(model, rows_of_batch(few, rows), name) as (parts, y_pred):
        omega = tf.ones([len(rows)], tf.nest.flatten(y_pred)[0].dtype)
        with tf.GradientTape() as tape:
            tape.watch(omega)
            value = Weighted.loss(model, parts, y_pred, omega)
        return tape.gradient(value, omega).numpy().astype(np.float64)


def _alone(model, few, name):
    """An `Alone` whose examples' losses make up the loss of the few examples as one batch."""
    with called(model, few, name) as (parts, y_pred), fitting(name):
        whole = float(_keras.compute_loss(model, *parts[:2], y_pred, parts[2]))
        rest = float(_keras.added_losses(model)) + float(_keras.regularisers(model))
    adds = _holds_rest(model, parts, y_pred, whole, rest)
    with called(model, few, name) as (parts, y_pred), fitting(name):
        losses = Alone(adds=adds).losses(model, parts, y_pred).numpy().astype(np.float64)
    for sums in (False, True):
        if close(whole - rest * adds, losses.sum() if sums else losses.mean()):
            return Alone(sums, adds)
    raise RefusedLoss(
        "The model's `compute_loss` is not linear in `sample_weight`, or ignores it, and is no "
        f"mean over examples either. {mixed_message(len(losses), name, whole, losses.mean())}"
    )
