"""The one scalar that everything is a derivative of: L(θ, ω; batch) of a compiled model.

    L(θ, ω; batch) = compute_loss(x, y, model(x, training=False), sample_weight = ω · w)

where w are the user's sample weights and ω, all ones, is one extra weight per
example. L is linear in ω, so ∂L/∂ωᵢ is what example i adds to the loss of its
batch, for any loss, number of outputs or regulariser, without a look inside.
"""

import contextlib
import weakref

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.sizes import batch_size
from keras_influence.engine.loss.smooth import SMOOTH
from keras_influence.engine.parameters import Parameters


class CompiledLoss:
    """The compiled loss of one model as a function of its parameters, batch by batch.

    Nothing of the model changes: variables are read, never assigned.

    Args:
        model: a built and compiled Keras model. Held weakly.
        variables: the variables that make up θ.
        smooth: let the smooth versions of the hinge losses stand in for them.

    Attributes:
        sums: whether the loss is a sum over the batch, not a mean. Set by `checks`.
        dropped_axes: how many trailing axes of an output its loss reduces. Set by `checks`.
        masked: whether a mask reaches the output, so that the loss is divided by the unmasked
            steps of the batch. Set by `checks`.
    """

    def __init__(self, model, variables, smooth=False):
        self._model = weakref.ref(model)
        self.parameters = Parameters(variables)
        self._replacements = SMOOTH if smooth else {}
        self.sums = False
        self.dropped_axes = 1
        self.masked = False

    @property
    def state(self):
        """What `checks` found that compiled kernels depend on."""
        return self.dropped_axes

    def weight_in(self, batch, n):
        """The weight with which a batch stands for its part of n examples.

        A mean over the batch needs none. A sum Σℓ + R is to become
        (n / b) Σℓ + R, so that b / n times it adds up to all of Σℓ and to R once.
        """
        return n / batch_size(batch) if self.sums else 1.0

    def _loss(self, theta, omega, batch, fixed_output=False):
        """L as a scalar tensor, and the model output it came from."""
        model = self._model()
        x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
        with self._at(theta):
            y_pred = _keras.call_model(model, x)
            if fixed_output:
                y_pred = tf.nest.map_structure(tf.stop_gradient, y_pred)
            loss = _keras.compute_loss(model, x, y, y_pred, self._weights(omega, w, y_pred))
        return tf.cast(loss, self.parameters.dtype), y_pred

    def example_losses_sum(self, theta, batch, omega=None):
        """Σ ωᵢ ℓᵢ without regularisers as a scalar tensor, and the model output.

        L is linear in ω: the model's part in L(ω) - L(0) is the examples' alone, also of
        what an activity regulariser adds.
        """
        model = self._model()
        omega = self._omega(batch) if omega is None else omega
        x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
        with self._at(theta):
            y_pred = _keras.call_model(model, x)
            loss, rest = (
                _keras.compute_loss(model, x, y, y_pred, self._weights(part, w, y_pred))
                for part in (omega, 0 * omega)
            )
        total = tf.cast(loss - rest, self.parameters.dtype)
        return total if self.sums else self._size(batch) * total, y_pred

    def _regulariser(self, theta, batch):
        """R(θ): what the loss still is when every example has weight zero."""
        return self._loss(theta, 0 * self._omega(batch), batch, fixed_output=True)[0]

    @contextlib.contextmanager
    def _at(self, theta):
        """The model with the values `theta`, in full precision, no variable assigned."""
        values = {id(v): value for v, value in zip(self.parameters.variables, theta)}
        model = self._model()
        mapping = [(v, values.get(id(v), v.value)) for v in model.trainable_variables]
        with self.with_values(mapping):
            yield

    @contextlib.contextmanager
    def with_values(self, mapping):
        """The model in full precision with other values for some variables: `(variable, tensor)`."""
        model = self._model()
        with (
            _keras.full_precision(model),
            _keras.replaced_losses(model, self._replacements),
            keras.StatelessScope(mapping, collect_losses=True),
        ):
            yield

    def _weights(self, omega, w, y_pred):
        """ω times the user's sample weights, shaped so that Keras broadcasts it per example."""
        if w is not None:
            return tf.nest.map_structure(
                lambda t: tf.cast(t, omega.dtype) * _expanded(omega, t.shape.rank), w
            )
        if not _keras.has_default_loss(self._model()):
            return omega
        # Keras does not broadcast weights (b,) over losses (b, t): give them their axes.
        return tf.nest.map_structure(
            lambda t: _expanded(omega, t.shape.rank - self.dropped_axes), y_pred
        )

    def _omega(self, batch, weight=1.0):
        return weight * tf.ones([rows_of(batch)], self.parameters.dtype)

    def _size(self, batch):
        return tf.cast(rows_of(batch), self.parameters.dtype)


def structure(batch):
    """What of a batch is the same for all batches of a data set, as a key."""
    return repr(tf.nest.map_structure(lambda t: (t.dtype.name, *t.shape[1:]), batch))


def rows_of(batch):
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def _expanded(omega, rank):
    return tf.reshape(omega, [-1] + [1] * max(rank - 1, 0))
