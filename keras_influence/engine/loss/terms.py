"""The compiled loss taken apart: what each example adds to each of its terms.

A compiled Keras model has a loss object for each output. Keras reduces its values, one or
more an example, to a scalar; here they stay apart, and are summed for each example. What a
loss object divides by (all entries, those that a mask leaves, nothing) is read off the object
and counted, never guessed from numbers.

A loss that gives one number for a whole batch is asked for each example by itself, on the
outputs of the batch. Whether the batch's loss is their mean or their sum is then found out by
`finding`, for it is nowhere written down.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_influence import _keras
from keras_influence.errors import explained

# Examples that are soon gone through one by one.
_FEW = 16
MEAN, SUM = "mean", "sum"
_REDUCTIONS = {"mean": MEAN, "sum_over_batch_size": MEAN, "sum": SUM, "none": SUM, None: SUM}


class RefusedLoss(ValueError):
    """A loss that cannot be taken apart by example, whatever the data are."""

    anchor = "refused-loss"
    __str__ = explained


class Term(NamedTuple):
    """One of the compiled losses, for a batch of b examples.

    Attributes:
        examples: (b,) the sum of weight · mask · loss over the entries of each example.
        entries: (b,) what Keras divides by for each example alone: 1 for a sum.
        counts: (3,) entries of the batch, and how many of its steps a mask leaves, of how many.
        divides: `MEAN` or `SUM`, as the loss object says, or None where it gave one number.
        whole: the batch's loss by the loss object itself where that is one number, else None.
        masked: whether there is a mask.
        output: the output that the loss was given.
        of_probabilities: the loss function, if it takes probabilities and no logits, or None.
        loses_logits: whether Keras loses the logits behind the output: it multiplies it by a mask where a
            class is ignored, and casts it where the loss is computed in another dtype.
    """

    examples: tf.Tensor
    entries: tf.Tensor
    counts: tf.Tensor
    divides: str | None
    whole: object
    masked: bool
    output: object
    of_probabilities: object
    loses_logits: bool


def compiled_terms(model, y, y_pred, sample_weight, replacements):
    """The `Term`s of a model's compiled losses, in Keras's order.

    Args:
        replacements: pairs of a function and the smooth one that stands in for it.

    Raises:
        ValueError: a loss divides by the sample weights.
    """
    calls = _keras.calls_of_compiled_loss(model, y, y_pred, sample_weight)
    return [_term(call._replace(loss=_smooth(call.loss, replacements))) for call in calls]


def _smooth(loss, replacements):
    """A copy of a loss object with a smooth function in place of a kinked one, if there is one."""
    fn = getattr(loss, "fn", None)
    for known, smooth in replacements:
        if fn is known:
            twin = _keras.twin_of(loss)
            twin.fn = smooth
            return twin
    return loss


def _term(call):
    loss, size = call.loss, rows_of(call.y_pred)
    plain = _keras.calls_as_keras_does(loss)
    values, mask = _keras.loss_values(loss, call.y_true, call.y_pred) if plain else (None, None)
    divides = whole = None
    factor = 1.0 if call.factor is None else call.factor
    if values is not None and _has_batch_axis(values, call):
        divides = _reduction(loss)
        values = _keras.weighted_values(loss, values, call.weight, mask)
    else:
        one = _unweighted(loss) if plain else loss
        values, mask = each_alone(one, call.y_true, call.y_pred, call.weight), None
        if plain:
            values = _keras.weighted_values(loss, values, call.weight, None)
        whole = factor * tf.reduce_sum(loss(call.y_true, call.y_pred, call.weight))
    left = tf.ones([size, 1], values.dtype)
    if mask is not None:
        left = tf.reshape(tf.cast(mask, values.dtype), [size, -1])
    entries, steps = (tf.cast(_numbers(t), values.dtype) for t in (values, left))
    share = entries / tf.cast(size, values.dtype)
    return Term(
        examples=factor * sum_by_example(values),
        entries=share * tf.reduce_mean(left, 1) if divides == MEAN else tf.ones_like(left[:, 0]),
        counts=tf.stack([entries, tf.reduce_sum(left), steps]),
        divides=divides,
        whole=whole,
        masked=mask is not None,
        output=call.y_pred,
        of_probabilities=_function_of_probabilities(loss),
        loses_logits=_loses_logits(loss, call.y_pred),
    )


def _unweighted(loss):
    """A loss object's one number for a batch, as it reduces what its function gives, without weights."""
    put = tf.reduce_mean if _reduction(loss) == MEAN else tf.reduce_sum
    return lambda y, p, w: put(_keras.loss_values(loss, y, p)[0])


def _function_of_probabilities(loss):
    return None if _keras.options_of(loss).get("from_logits") else getattr(loss, "fn", None)


def _loses_logits(loss, output):
    ignores = _keras.options_of(loss).get("ignore_class") is not None
    dtype = getattr(loss, "dtype", None)
    return ignores or any(dtype not in (None, t.dtype.name) for t in tf.nest.flatten(output))


def _reduction(loss):
    if loss.reduction == "mean_with_sample_weight":
        raise RefusedLoss(
            f"The loss {loss.name} divides by the sum of the sample weights "
            "(reduction='mean_with_sample_weight'), so leaving an example out changes what all "
            "others count. Use reduction='sum_over_batch_size'."
        )
    return _REDUCTIONS[loss.reduction]


def _has_batch_axis(values, call):
    """Whether the first axis of what a loss function gave is that of the examples.

    It is if it is as long as the batch. Where an example has an axis as long as that too, or as many
    numbers, the function is asked once more, for each example twice.
    """
    if not values.shape.rank:
        return False
    rows = tf.nest.flatten(call.y_pred)[0].shape[0]
    if rows is None or values.shape[0] != rows:
        return values.shape[0] in (rows, None)
    given = [t for t in tf.nest.flatten((call.y_true, call.y_pred)) if t is not None]
    parts = [t.shape[1:] for t in given]
    if not any(known in (rows, None) for p in parts for known in (*p, p.num_elements())):
        return True
    y, p = (
        tf.nest.map_structure(lambda t: None if t is None else tf.concat([t, t], 0), part)
        for part in (call.y_true, call.y_pred)
    )
    return _keras.loss_values(call.loss, y, p)[0].shape[0] != rows


def each_alone(function, y_true, y_pred, weight):
    """`function(y_true, y_pred, weight)` of each example as a batch of one, (b,).

    A softmax's logits go with its output, since Keras's cross-entropies look for them.
    """
    structure = (y_true, y_pred, weight)
    leaves = tf.nest.flatten(structure)
    given = [i for i, leaf in enumerate(leaves) if leaf is not None]
    logits = [i for i in given if _keras.logits_of(leaves[i]) is not None]
    rows = [tf.convert_to_tensor(leaves[i]) for i in given]
    rows += [_keras.logits_of(leaves[i]) for i in logits]

    def alone(row):
        parts = [None] * len(leaves)
        for i, part in zip(given, row):
            parts[i] = part[None]
        for i, part in zip(logits, row[len(given) :]):
            _keras.set_logits(parts[i], part[None])
        return tf.reduce_sum(function(*tf.nest.pack_sequence_as(structure, parts)))

    if tf.executing_eagerly() and len(rows[0]) <= _FEW:  # A map would be traced at each call.
        return tf.stack([alone(row) for row in zip(*map(tf.unstack, rows))])
    return tf.vectorized_map(alone, rows)


def expanded(omega, rank):
    """ω as an array of more axes, to be broadcast over an example's entries."""
    return tf.reshape(omega, [-1] + [1] * max(rank - 1, 0))


def rows_of(structure):
    """Number of examples in a batch: a number where it is known, else a tensor."""
    first = tf.nest.flatten(structure)[0]
    known = first.shape[0] if first.shape.rank else None
    return tf.shape(first)[0] if known is None else known


def _numbers(tensor):
    """How many there are in it: a number where it is known, else a tensor."""
    known = tensor.shape.num_elements()
    return tf.size(tensor) if known is None else known


def sum_by_example(values):
    """Sum over all axes but the first."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)))
