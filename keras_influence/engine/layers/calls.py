"""One call of a layer of the user's own as a function of the tensors that it takes."""

import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.layers import by_row

# Bytes of numbers whose differences say something.
_BYTES = 4


class Call:
    """One call of a layer as a function of those of its tensors that have as many rows as it gives.

    Args:
        site: a `Site` of a whole call.
        delta: the loss's gradients at its outputs, each may be None.
    """

    def __init__(self, site, delta):
        self.site, self.given = site, taken_by(site)
        found = {i: tf.convert_to_tensor(g) for i, g in enumerate(delta) if g is not None}
        found = {i: g for i, g in found.items() if has_rows(g)}
        count = min((g.shape[0] for g in found.values()), default=None)
        self._delta = {i: g for i, g in found.items() if g.shape[0] == count}
        self.places = [i for i, t in enumerate(self.given) if has_rows(t) and len(t) == count]

    def random(self, rng):
        """Numbers like the outputs, zero where the loss does not depend on them."""
        deltas = list(self._delta.values())
        return [
            e * tf.cast(delta != 0, e.dtype) for e, delta in zip(by_row.drawn(rng, deltas), deltas)
        ]

    def __call__(self, places, at):
        """The outputs where it takes other tensors in some places."""
        site, given = self.site, with_others(self.given, places, at)
        arguments, keywords = tf.nest.pack_sequence_as((site.arguments, site.keywords), given)
        outputs = outputs_of(site.layer.call(*arguments, **keywords))
        return [outputs[i] for i in self._delta]


def with_others(tensors, places, others):
    """Some tensors with others in some places, which have the masks of those."""
    found = list(tensors)
    for place, other in zip(places, others):
        found[place], mask = tf.identity(other), _keras.mask_of(tensors[place])
        if mask is not None:
            _keras.set_mask(found[place], mask)
    return found


def taken_by(site):
    """All tensors, and whatever else, that a call is given, flat."""
    return tf.nest.flatten((site.arguments, site.keywords))


def outputs_of(given):
    """What a call gives, flat; in place of probabilities the logits behind them, as Keras's losses take them."""
    behind = [(t, _keras.logits_of(t)) for t in tf.nest.flatten(given)]
    return [t if logits is None else logits for t, logits in behind]


def has_rows(t):
    """Whether it has rows with numbers in them, it is not inside of a graph, whose differences say something."""
    dense = isinstance(t, tf.Tensor) and not tf.is_symbolic_tensor(t)
    return dense and is_fine(t) and t.shape.rank > 0 and t.shape[0] > 0


def is_fine(t):
    """Whether its numbers have digits enough for differences."""
    return t.dtype.is_floating and t.dtype.size >= _BYTES
