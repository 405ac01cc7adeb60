"""The outputs z at which a loss is curved, and its slope there: what Gauss-Newton is made of.

Keras's cross-entropies step back from a softmax or sigmoid output to its logits, where the loss
is convex, and the Gauss-Newton matrix of a generalised linear model is its Hessian. An output
whose activation is not Keras's own has no logits to step back to; but a softmax and a sigmoid
can be inverted, up to a shift that no cross-entropy sees: z = log p, and log p - log(1 - p).
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_influence import _keras

_SOFTMAX = (keras.losses.categorical_crossentropy, keras.losses.sparse_categorical_crossentropy)
_SIGMOID = (keras.losses.binary_crossentropy,)
# Keeps the logarithm of an output that has vanished finite.
_TINY = 1e-30


class Outputs(NamedTuple):
    """What a model puts out for a batch, and at which of it the loss is curved.

    Attributes:
        model: the model.
        parts: the batch as (x, y, w).
        y_pred: the model's output.
        curved: triples (output, its logits or None, activation or None) of what the loss is a
            function of. With an activation the loss is to be given activation(logits): it would
            not find the logits.
    """

    model: Any
    parts: tuple
    y_pred: Any
    curved: list


class Slope(NamedTuple):
    """∂ Σ s e / ∂z with the outputs held apart from each other and from θ.

    Attributes:
        tape: it recorded the slope.
        free: the tensors that the slope is a function of.
        slope: it, a tensor for each of them.
        z: the model's own tensors that these stand for.
        count: how many of them are outputs; the others are of θ, which the loss reads besides.
    """

    tape: Any
    free: list
    slope: list
    z: list
    count: int

    def bent(self, t):
        """(∂²/∂z²) t, for tensors t like the outputs."""
        found = self.tape.gradient(self.slope, self.free, output_gradients=t)
        return filled(found, self.free)


def outputs_of(objective, batch):
    """The `Outputs` for a batch, in `objective.at`."""
    model, parts, y_pred = objective.called(batch)
    return Outputs(model, parts, y_pred, _curved(objective.reading, model, parts, y_pred))


def _curved(reading, model, batch, y_pred):
    found, seen = [], set()
    for output, fn, loses in reading.outputs(model, batch, y_pred):
        if id(output) in seen:
            continue
        seen.add(id(output))
        behind = _keras.logits_of(output)
        logits = _logits(output, fn) if behind is None else behind
        found.append((output, logits, _activation(fn) if loses else None))
    return found


def _logits(output, fn):
    tiny = tf.constant(_TINY, output.dtype)
    if any(fn is known for known in _SOFTMAX):
        return tf.math.log(tf.maximum(output, tiny))
    if any(fn is known for known in _SIGMOID):
        return tf.math.log(tf.maximum(output, tiny)) - tf.math.log(tf.maximum(1 - output, tiny))
    return None


def _activation(fn):
    """What turns logits into what a cross-entropy of probabilities takes; None for other losses."""
    if any(fn is known for known in _SOFTMAX):
        return tf.nn.softmax
    return tf.nn.sigmoid if any(fn is known for known in _SIGMOID) else None


def slope_at(objective, outputs, weight, theta=()):
    """The `Slope` at some `Outputs`, in `objective.at`.

    An output from which another is computed must not count twice.

    Args:
        theta: tensors that count as outputs too where the loss reads them, as it does where it penalises a weight.
    """
    free, omega = {}, objective.ones(outputs.parts)
    for output, logits, _ in outputs.curved:
        leaf = tf.stop_gradient(tf.identity(output))
        behind = None if logits is None else tf.stop_gradient(logits)
        free[id(output)] = (leaf, behind)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        for leaf, behind in free.values():
            outer.watch([t for t in (leaf, behind) if t is not None])
        outer.watch(theta)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as middle:
            for output, _, activation in outputs.curved:
                leaf, behind = free[id(output)]
                middle.watch([t for t in (leaf, behind) if t is not None])
                if activation is not None:
                    free[id(output)] = (activation(behind), behind)
                elif behind is not None:
                    _keras.set_logits(leaf, behind)
            middle.watch(theta)
            held = tf.nest.map_structure(lambda t: _held(t, free), outputs.y_pred)
            about = outputs.model, outputs.parts, held, omega, weight
            value = objective.reading.examples(*about)
        candidates = [
            (t, original)
            for output, logits, activation in outputs.curved
            for t, original in zip(free[id(output)], (output, logits))
            if t is not None and (activation is None or original is logits)
        ]
        count = len(candidates)
        candidates += [(t, t) for t in theta]
        slopes = middle.gradient(value, [t for t, _ in candidates])
        count -= sum(slope is None for slope in slopes[:count])
        # What was taken row by row comes back as `IndexedSlices`.
        slopes = [s if s is None else tf.convert_to_tensor(s) for s in slopes]
    used = [(t, o, s) for (t, o), s in zip(candidates, slopes) if s is not None]
    leaves, originals, slopes = ([part[i] for part in used] for i in range(3))
    return Slope(outer, leaves, slopes, originals, count)


def _held(tensor, free):
    leaf = free[id(tensor)][0] if id(tensor) in free else tf.stop_gradient(tensor)
    mask = _keras.mask_of(tensor)
    if mask is not None:
        _keras.set_mask(leaf, mask)
    return leaf


def filled(gradients, like):
    """Zeros in place of gradients that are None."""
    return [
        tf.zeros_like(t) if g is None else tf.convert_to_tensor(g) for g, t in zip(gradients, like)
    ]


def paired_by_example(slopes, others, like):
    """Σ over outputs of ⟨slope_i, other_i⟩ for each example i, a vector like `like`."""
    total = tf.zeros_like(like)
    for slope, other in zip(slopes, others):
        total += tf.cast(
            tf.reduce_sum(tf.reshape(slope * other, [tf.size(like), -1]), 1), like.dtype
        )
    return total
