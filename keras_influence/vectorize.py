"""One linear function, many vectors: how a batch kernel treats the rows of a (k, p) matrix."""

import keras
import tensorflow as tf

# `tf.vectorized_map` turns each convolution into a wider one, which was slower
# than a loop on CPU, and it cannot follow the while-loops of recurrent layers.
_LOOPED = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)


def prefers_loop(model):
    """Whether rows are better taken one by one than all at once for this model."""
    return any(
        isinstance(layer, _LOOPED) or "Conv" in type(layer).__name__
        for layer in model._flatten_layers()
    )


def over_vectors(function, vectors, loop):
    """Apply `function`, (p,) -> tensor, to each row of `vectors`, sharing what does not depend on it.

    Args:
        function: a traceable linear function of one vector.
        vectors: (k, p) tensor; k = 1 takes no detour.
        loop: take the rows in a `tf.while_loop` instead of vectorised.

    Returns:
        The results, stacked along a first axis of length k.
    """
    if vectors.shape[0] == 1:
        return function(vectors[0])[None]
    if loop:
        return tf.map_fn(function, vectors)
    return tf.vectorized_map(function, vectors)
