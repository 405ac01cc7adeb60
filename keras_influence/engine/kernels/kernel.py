"""Compiled batch kernels: traced once for batches of any size, one linear map for many vectors."""

import functools

import keras
import tensorflow as tf

from keras_influence.engine.kernels import primitives

# A vectorised map turns each convolution into a wider one, which was slower than
# a loop on CPU, and it cannot follow the while-loops of recurrent layers.
_LOOPED = (keras.layers.RNN, keras.layers.Bidirectional, keras.layers.TimeDistributed)


def kernel(function):
    """Compile `function(self, batch, weight, *vectors)` once for each structure of batch.

    `self` has `parameters`, a dict `kernels` to keep the compiled functions in, and a
    hashable `state` of all else that the traced code depends on.
    `weight` is a number (default 1); vectors are (k, p) arrays.
    """

    @functools.wraps(function)
    def run(self, batch, weight=1.0, *vectors):
        flat = tf.nest.flatten(batch)
        many = bool(vectors) and vectors[0].shape[0] > 1
        layout = tuple((t.dtype, t.shape.rank) for t in flat)
        skeleton = repr(tf.nest.map_structure(lambda _: 0, batch))
        key = (function.__name__, many, skeleton, layout, self.state)
        known = self.kernels.get(key)
        if known is None or not known.accepts(flat):
            known = self.kernels[key] = _Compiled(function, self, batch, flat, known, many)
        return known(flat, weight, vectors)

    return run


class _Compiled:
    """One traced kernel; axes other than the first relax only when they are seen to vary."""

    def __init__(self, function, owner, batch, flat, known, many):
        self._dtype = owner.parameters.dtype
        specs = known.specs if known else [t.shape for t in flat]
        self.specs = [_relaxed(t, spec) for t, spec in zip(flat, specs)]
        structure = tf.nest.map_structure(lambda _: 0, batch)
        count = function.__code__.co_argcount - 3
        vector = tf.TensorSpec([None if many else 1, owner.parameters.size], self._dtype)

        def trace(flat, weight, vectors):
            with primitives.replaced(many):
                return function(owner, tf.nest.pack_sequence_as(structure, flat), weight, *vectors)

        try:
            self._function = tf.function(trace, autograph=False).get_concrete_function(
                [tf.TensorSpec(shape, t.dtype) for shape, t in zip(self.specs, flat)],
                tf.TensorSpec([], self._dtype),
                (vector,) * count,
            )
        except LookupError as error:
            raise _not_differentiable(error) from error

    def accepts(self, flat):
        return all(s.is_compatible_with(t.shape) for s, t in zip(self.specs, flat))

    def __call__(self, flat, weight, vectors):
        weight = tf.constant(weight, self._dtype)
        vectors = tuple(tf.convert_to_tensor(v) for v in vectors)
        try:
            return self._function(flat, weight, vectors)
        except tf.errors.NotFoundError as error:  # Inside a while-loop it shows only when run.
            raise _not_differentiable(str(error).strip().splitlines()[-1]) from error


def _not_differentiable(error):
    return ValueError(
        "`model` or its loss uses an operation whose gradient TensorFlow cannot differentiate "
        f"({error}). Replace that layer or loss by a smooth one; if it is in the network, "
        "curvature='gauss_newton' may do without."
    )


def _relaxed(tensor, known):
    rest = [a if a == b else None for a, b in zip(tensor.shape[1:], known[1:])]
    return tf.TensorShape([None, *rest])


def prefers_loop(model):
    """Whether vectors are better taken one by one than all at once for this model."""
    return any(
        isinstance(layer, _LOOPED) or "Conv" in type(layer).__name__
        for layer in model._flatten_layers()
    )


def over_vectors(function, vectors, loop):
    """Apply `function`, (p,) -> tensor, to each row of `vectors`; what all rows share is done once.

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
