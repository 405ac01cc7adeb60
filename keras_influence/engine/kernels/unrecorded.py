"""Derivatives from the graph itself, in place of what a tape records of it.

A loop that several tapes may see, or a persistent one, TensorFlow differentiates again and again
while it is recorded, for all that might yet be asked of it: most of what tracing a model with
recurrent layers takes. A graph knows its operations without that.
"""

import tensorflow as tf


class Unrecorded:
    """As a persistent `tf.GradientTape`, in a graph alone."""

    def __enter__(self):
        return self

    def __exit__(self, *about):
        return None

    def watch(self, tensors):
        """Nothing: a graph knows all of its tensors."""

    def gradient(self, target, sources, output_gradients=None):
        """∂⟨target, output_gradients⟩/∂sources, None where there is no way between them."""
        single = isinstance(sources, tf.Tensor)
        found = tf.gradients(target, [sources] if single else sources, grad_ys=output_gradients)
        return found[0] if single else found
