"""Whether many vectors are taken all at once or one by one, and either way of it."""

import keras
import tensorflow as tf

from keras_influence import _keras

# A vectorised map turns each convolution into a wider one, which was slower than
# a loop on CPU, and it cannot follow the while-loops of recurrent layers.
_LOOPED = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)
# Operations in a millisecond or in five, which one vector by itself takes at least.
_CONVOLVED, RECURRENT = 3e7, 1.5e8
# Operations of a graph that are loops.
LOOPS = ("While", "StatelessWhile")
# What a vectorised map ends in where it cannot follow an operation.
NOT_VECTORISED = (ValueError, TypeError, AttributeError, NotImplementedError, tf.errors.OpError)


def prefers_loop(model):
    """Whether vectors are better taken one by one than all at once for this model."""
    return work_alone(model) > 0


def work_alone(model):
    """Operations in the time that a vector takes at least, where it does not go with others; else 0."""
    layers = _keras.layers_of(model)
    if any(isinstance(layer, _LOOPED) for layer in layers):
        return RECURRENT
    return _CONVOLVED if any("Conv" in type(layer).__name__ for layer in layers) else 0.0


def over_vectors(function, vectors, loop, outputs=None):
    """Apply `function`, (p,) -> tensor, to each row of `vectors`; what all rows share is done once.

    Args:
        function: a traceable linear function of one vector.
        outputs: how many tensors it gives, as a tuple; None for one tensor.
        vectors: (k, p) tensor; k = 1 takes no detour.
        loop: take the rows in a `tf.while_loop` instead of vectorised.

    Returns:
        The results, stacked along a first axis of length k.
    """
    if vectors.shape[0] == 1:
        return tf.nest.map_structure(lambda t: t[None], function(vectors[0]))
    if loop:
        dtypes = (vectors.dtype,) * outputs if outputs else vectors.dtype
        # More iterations at a time take memory, and no less time.
        return tf.map_fn(function, vectors, parallel_iterations=1, fn_output_signature=dtypes)
    return tf.vectorized_map(function, vectors, warn=False)
