"""Keras's reversible embedding as the two products that it is made of: rows looked up, and logits.

    z_t = E[i_t]        z_t = x_t Eᵀ        ∂ℓ/∂E = Σ_t 1(i_t) δ_tᵀ  +  Σ_t δ_t x_tᵀ

Where the two are tied, E is in both: an example's gradient is the sum of theirs.
"""

import keras
import tensorflow as tf

from keras_influence import _keras

layers = keras.layers
# Not in the oldest versions of Keras.
_LAYER = getattr(layers, "ReversibleEmbedding", None)
# What a class of its kind would do in another way.
_OWN = ("call", "build", "compute_mask", "embeddings")


class Reversed(layers.Layer):
    """Logits of the rows of a table E (V, d), which is another layer's."""

    def __init__(self, embeddings, **options):
        super().__init__(**options)
        self.embeddings, self.built = embeddings, True

    def call(self, x):
        """(..., d) to (..., V)."""
        return tf.matmul(x, tf.cast(self.embeddings.value, x.dtype), transpose_b=True)


def covers(layer):
    """Whether a layer is one, as it was built, or of a class that adds nothing, such as KerasHub's."""
    if _LAYER is None or not isinstance(layer, _LAYER):
        return False
    same = all(getattr(type(layer), name) is getattr(_LAYER, name) for name in _OWN)
    return same and not layer.lora_enabled and layer.quantization_mode is None


def made(layer):
    """Two layers that hold the very variables of a reversible embedding."""
    name, dtype = layer.name, layer.dtype_policy
    rows = layers.Embedding(
        layer.input_dim,
        layer.output_dim,
        embeddings_initializer="zeros",
        dtype=dtype,
        name=f"{name}_rows",
    )
    _keras.holding_rows(rows, layer.embeddings)
    about = {"dtype": layer.reverse_dtype or dtype, "name": f"{name}_logits"}
    if layer.tie_weights:
        return rows, Reversed(layer.embeddings, **about)
    logits = layers.Dense(layer.input_dim, use_bias=False, kernel_initializer="zeros", **about)
    return rows, _keras.holding(logits, layer.reverse_embeddings, None)


def called(layer, pieces, see):
    """Its call by its pieces."""
    del see
    rows, logits = pieces

    def by_pieces(inputs, reverse=False):
        if not reverse:
            found = rows.call(inputs)
            mask = layers.Embedding.compute_mask(layer, inputs)
            if mask is not None:
                _keras.set_mask(found, mask)
            return found
        x = tf.cast(inputs, logits.compute_dtype)
        z, cap = logits.call(x), layer.logit_soft_cap
        return z if cap is None else tf.tanh(z / cap) * cap

    return by_pieces
