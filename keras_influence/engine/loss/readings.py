"""Three ways to read a model's `compute_loss` as a sum over examples and a rest.

    Σ_i ω_i s_i ℓ_i  of a batch, and  A + R  that is there without any example:
    A what layers add by `add_loss`, R all else, the weights' regularisers as a rule.

    Compiled   Keras's own compute_loss: the compiled losses, entry by entry (`terms`)
    Weighted   a compute_loss of the user's that multiplies by `sample_weight`, as Keras's does
    Alone      one that ignores it: asked for each example by itself, on the batch's outputs

Which one a model needs, and that it is right, `finding` finds out on the data it is used on.
"""

import dataclasses

import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.loss.terms import compiled_terms, each_alone, expanded, rows_of


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Keras's own `compute_loss`.

    Attributes:
        replacements: pairs of a loss function and the smooth one that stands in for it.
    """

    replacements: tuple = ()

    def terms(self, model, batch, y_pred):
        """The `Term`s of the compiled losses."""
        _, y, w = batch
        return compiled_terms(model, y, y_pred, w, self.replacements)

    def examples(self, model, batch, y_pred, omega, weight):
        """Σ_i ω_i Σ_k s_ik e_ik with s_ik = total_k + own / entries_ik, a scalar."""
        value = tf.zeros([], omega.dtype)
        for k, term in enumerate(self.terms(model, batch, y_pred)):
            entries = tf.cast(term.entries, omega.dtype)
            scale = weight.total[k] + tf.math.divide_no_nan(weight.own, entries)
            value += tf.reduce_sum(omega * scale * tf.cast(term.examples, omega.dtype))
        return value

    def rest(self, model, batch, y_pred):
        """`(A, R)`, two scalars."""
        return _keras.added_losses(model), _keras.regularisers(model)

    def has_outputs(self, model):
        """Whether the loss is a function of the model's outputs, besides what layers add."""
        return _keras.has_compiled_loss(model)

    def outputs(self, model, batch, y_pred):
        """Triples of an output that the loss is a function of, the function if known, and whether
        it loses the logits behind the output."""
        return [
            (leaf, term.of_probabilities, term.loses_logits)
            for term in self.terms(model, batch, y_pred)
            for leaf in tf.nest.flatten(term.output)
        ]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A `compute_loss` of the user's that is linear in `sample_weight`.

    Attributes:
        sums: whether it is a sum over the batch, not a mean.
        adds: how often what layers add by `add_loss` is in it.
        axes: axes that ω has beyond the first: an example's weight is for all of its steps.
    """

    sums: bool = False
    adds: float = 1.0
    axes: int = 0

    def total(self, n):
        """The factor of the examples' sum in n L."""
        return float(n) if self.sums else 1.0

    def examples(self, model, batch, y_pred, omega, weight):
        scale = omega * (weight.total[0] + weight.own)
        part = self.loss(model, batch, y_pred, scale) - self.loss(model, batch, y_pred, 0 * scale)
        part = tf.cast(part, omega.dtype)
        return part if self.sums else part * tf.cast(rows_of(y_pred), omega.dtype)

    def rest(self, model, batch, y_pred):
        nothing = tf.zeros([rows_of(y_pred)], tf.nest.flatten(y_pred)[0].dtype)
        rest = self.loss(model, batch, tf.nest.map_structure(tf.stop_gradient, y_pred), nothing)
        added = self.adds * _keras.added_losses(model) if self.adds else 0.0
        return added, rest - tf.cast(added, rest.dtype)

    def has_outputs(self, model):
        return True

    def outputs(self, model, batch, y_pred):
        return [(leaf, None, False) for leaf in tf.nest.flatten(y_pred)]

    def loss(self, model, batch, y_pred, omega):
        """The user's loss with weights ω, (b,), on top of the sample weights."""
        x, y, w = batch
        if w is None:
            w = expanded(omega, 1 + self.axes)
        else:
            w = tf.nest.map_structure(
                lambda t: tf.cast(t, omega.dtype) * expanded(omega, t.shape.rank), w
            )
        return _keras.compute_loss(model, x, y, y_pred, w)


@dataclasses.dataclass(frozen=True)
class Alone:
    """A `compute_loss` of the user's that ignores `sample_weight`.

    Attributes:
        sums: whether the batch's loss is the sum of its examples' losses, not their mean.
        adds: whether it holds what layers add by `add_loss` and the weights' regularisers.
    """

    sums: bool = False
    adds: bool = False

    def total(self, n):
        """The factor of the examples' sum in n L."""
        return float(n) if self.sums else 1.0

    def losses(self, model, batch, y_pred):
        """The loss of each example by itself, without A and R, (b,)."""
        x, y, w = batch

        def alone(given, outputs, weight):
            return _keras.compute_loss(model, *given, outputs, weight)

        found = each_alone(alone, (x, y), y_pred, w)
        added, rest = self.rest(model, batch, y_pred)
        return found - tf.cast(added + rest, found.dtype)

    def examples(self, model, batch, y_pred, omega, weight):
        losses = tf.cast(self.losses(model, batch, y_pred), omega.dtype)
        return tf.reduce_sum(omega * (weight.total[0] + weight.own) * losses)

    def rest(self, model, batch, y_pred):
        if not self.adds:
            return tf.zeros([]), tf.zeros([])
        return _keras.added_losses(model), _keras.regularisers(model)

    def has_outputs(self, model):
        return True

    def outputs(self, model, batch, y_pred):
        return [(leaf, None, False) for leaf in tf.nest.flatten(y_pred)]
