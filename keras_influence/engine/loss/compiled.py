"""The one scalar that everything is a derivative of, batch by batch.

    n L(θ, ω) = Σ_batches [ Σ_i Σ_k ω_i s_ik e_ik(θ) + a A(θ; batch) + b R(θ) ]

L is the compiled loss of all n training examples as one batch, with one extra weight ω_i, all
ones, for each example. e_ik is what example i gives to the k-th term of the loss, its sample
weight and mask included; s_ik makes terms of different divisors one objective (`Weighting`);
A is what layers add by `add_loss`, R the weights' regularisers; b is the size of the batch.
L is linear in ω because ω is ours: it never goes through Keras where Keras lets us choose.
"""

import contextlib
import weakref
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.loss.readings import Compiled
from keras_influence.engine.loss.terms import MEAN, SUM, rows_of
from keras_influence.engine.parameters import Parameters


class Weighting(NamedTuple):
    """The factors of one quantity: all of them numbers, so that kernels are traced once.

    Attributes:
        own: 1 where each example counts by its own loss, as a batch of one.
        added: factor of b A.
        added_sum: factor of A.
        alone: factor of A where an example stands alone, as a pair of itself.
        rest: factor of b R.
        total: (terms,) factors of e_ik.
    """

    own: object = 0.0
    added: object = 0.0
    added_sum: object = 0.0
    alone: object = 0.0
    rest: object = 0.0
    total: object = ()

    @classmethod
    def of(cls, vector):
        """From a (5 + terms,) tensor."""
        return cls(*tf.unstack(vector[:5]), vector[5:])

    def vector(self):
        """As a list of 5 + terms numbers."""
        return [*self[:5], *self.total]

    def tensors(self, dtype):
        """The same of tensors."""
        return Weighting.of(tf.constant(self.vector(), dtype))


class CompiledLoss:
    """The compiled loss of one model as a function of its parameters, batch by batch.

    Nothing of the model changes: variables are read, never assigned.

    Args:
        model: a built and compiled Keras model. Held weakly.
        variables: the variables that make up θ, which may be others than the trainable ones.
        reading: how `compute_loss` is read, from `readings`.
        added: what layers add by `add_loss`; see `facts.Facts`.
    """

    def __init__(self, model, variables, reading=None, added="mixed"):
        self._model = weakref.ref(model)
        self.parameters = Parameters(variables)
        self.reading = reading or Compiled()
        self.added = added
        self.adds_by_example = added in (MEAN, SUM)

    def value(self, theta, omega, batch, weight):
        """The batch's part of n L as a scalar tensor."""
        with self.at(theta):
            model, parts, y_pred = self.called(batch)
            total = self.reading.examples(model, parts, y_pred, omega, weight)
            return total + self._rest(model, parts, y_pred, weight)

    def values(self, parts, y_pred, weights):
        """`value` at θ as it is, of each of some `Weighting`s of numbers; where the model was called."""
        about, omega = (self._model(), parts, y_pred), self.ones(y_pred)
        return [self._value(about, omega, w) for w in weights]

    def _value(self, about, omega, numbers):
        """What has the factor zero is not computed."""
        weight = numbers.tensors(self.parameters.dtype)
        value = tf.zeros([], self.parameters.dtype)
        if numbers.own or any(numbers.total):
            value += self.reading.examples(*about, omega, weight)
        if numbers.added or numbers.added_sum or numbers.rest:
            value += self._rest(*about, weight)
        return value

    def examples(self, theta, omega, batch, weight):
        """Σ_i Σ_k ω_i s_ik e_ik as a scalar tensor."""
        with self.at(theta):
            model, batch, y_pred = self.called(batch)
            return self.reading.examples(model, batch, y_pred, omega, weight)

    def rest(self, theta, batch, weight):
        """a A + b R as a scalar tensor; of the outputs it knows nothing, not even times zero."""
        with self.at(theta):
            if self.added == "nothing" and isinstance(self.reading, Compiled):
                # Only the weights' own regularisers: they take no call of the model.
                size = tf.cast(rows_of(batch), self.parameters.dtype)
                own = tf.cast(_keras.regularisers(self._model()), self.parameters.dtype)
                return weight.rest * size * own
            model, parts, y_pred = self.called(batch)
            held = tf.nest.map_structure(tf.stop_gradient, y_pred)
            return self._rest(model, parts, held, weight)

    def _rest(self, model, parts, y_pred, weight):
        size = tf.cast(rows_of(y_pred), self.parameters.dtype)
        added, rest = (
            tf.cast(t, self.parameters.dtype) for t in self.reading.rest(model, parts, y_pred)
        )
        return (weight.added * size + weight.added_sum) * added + weight.rest * size * rest

    def alone(self, theta, batch, i, weight):
        """What example i by itself is to its loss, as the first of a pair of itself.

        A pair, for a batch of one is a special case in too many places.
        """
        pair = tf.nest.map_structure(lambda t: tf.gather(t, [i, i]), batch)
        omega = tf.constant([1.0, 0.0], self.parameters.dtype)
        with self.at(theta):
            model, pair, y_pred = self.called(pair)
            total = self.reading.examples(model, pair, y_pred, omega, weight)
            if not self.adds_by_example:
                return total
            added, _ = self.reading.rest(model, pair, y_pred)
        return total + weight.alone * tf.cast(added, self.parameters.dtype)

    def model(self):
        """The model, while it lives."""
        return self._model()

    def called(self, batch):
        """The model, the batch as (x, y, w), and the model's output. In `at`."""
        model = self._model()
        batch = keras.utils.unpack_x_y_sample_weight(batch)
        return model, batch, _keras.call_model(model, batch[0])

    @contextlib.contextmanager
    def at(self, theta):
        """The model with the values `theta`, in full precision, no variable assigned."""
        mapping = list(zip(self.parameters.variables, theta))
        chosen = {id(v) for v in self.parameters.variables}
        rest = (v for v in self._model().trainable_variables if id(v) not in chosen)
        mapping += [(v, v.value) for v in rest]
        with self.with_values(mapping):
            yield

    @contextlib.contextmanager
    def with_values(self, mapping):
        """The model in full precision with other values for some variables: `(variable, tensor)`."""
        with _keras.standing_at(self._model(), mapping):
            yield

    def ones(self, batch):
        return tf.ones([rows_of(batch)], self.parameters.dtype)
