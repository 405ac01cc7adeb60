"""A convolution at each step of a sequence, as one layer that is linear in its weights."""

import keras
import tensorflow as tf


class Steps(keras.layers.Layer):
    """One convolution for all steps, (b, T, ...) to (b, T, ...).

    Args:
        convolution: of Keras's, channels last.
    """

    def __init__(self, convolution, **options):
        super().__init__(**options)
        self.convolution, self.built = convolution, True

    @property
    def kernel(self):
        """The convolution's."""
        return self.convolution.kernel

    @property
    def bias(self):
        """The convolution's, or None."""
        return self.convolution.bias

    def call(self, x):
        """All steps at once."""
        return self.at_each(self.convolution.call, x)

    def at_each(self, function, x):
        """A function of (b, ...), at each step of (b, T, ...)."""
        shape = tf.shape(x)
        found = function(tf.reshape(x, tf.concat([[-1], shape[2:]], 0)))
        apart = tf.reshape(found, tf.concat([shape[:2], tf.shape(found)[1:]], 0))
        return tf.ensure_shape(apart, [*x.shape[:2], *found.shape[1:]])
