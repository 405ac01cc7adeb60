"""The weights that a layer has besides its sublayers', such as a user's own, as one piece of it.

Its call f need not be linear in them, and may go through sublayers. All that they do to the loss
still goes through its output, so that an example's gradient is that of its own call:

    ∂ℓᵢ/∂w = ∂⟨f(aᵢ; w), δᵢ⟩/∂w        δᵢ = ∂ℓᵢ/∂f(aᵢ; w)
"""

import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras

# With more weights than this the gradients of a batch of examples are too large.
_LARGEST = 2**18


class Own(keras.layers.Layer):
    """What a layer's own weights are held by; it is given the layer's arguments."""

    def __init__(self, layer, **options):
        super().__init__(**options)
        self.owned, self.built = tuple(_own(layer)), True
        self._of = weakref.ref(layer)

    def call(self, given):
        """What the layer itself gives for `(arguments, keywords)`."""
        arguments, keywords = given
        return self._of().call(*arguments, **keywords)


def covers(layer):
    """Whether a layer has weights of its own, not too many, and is called outside of loops."""
    if hasattr(layer, "state_size"):  # A cell, which is called in a loop.
        return False
    return 0 < sum(int(np.prod(v.shape)) for v in _own(layer)) <= _LARGEST


def _own(layer):
    inner = {id(v) for sub in _keras.layers_of(layer, itself=False) for v in sub.variables}
    return [v for v in layer.trainable_variables if id(v) not in inner]


def made(layer):
    """The one piece."""
    return (Own(layer, dtype=layer.dtype_policy, name=f"{layer.name}_own"),)


def called(layer, pieces, see):
    """Its call, seen where it gives one tensor."""
    (own,), plain = pieces, layer.call

    def by_pieces(*arguments, **keywords):
        y = plain(*arguments, **keywords)
        if tf.is_tensor(y):
            see(own, (arguments, keywords), y)
        return y

    return by_pieces


def hides_examples(site):
    """Whether a site in a kernel is a piece's whose output has no axis of examples."""
    z = site.outputs
    return isinstance(site.layer, Own) and tf.is_symbolic_tensor(z) and z.shape[0] is not None


def counts(site, delta):
    """How many rows δ and each input have, which are as many as there are examples; or not."""
    given = [t for t in tf.nest.flatten(site.inputs) if has_examples(t)]
    return tf.stack([tf.shape(t)[0] for t in (delta, *given)])


def has_examples(given):
    """Whether it is a tensor with an axis of examples: their number is not known in a kernel."""
    return tf.is_tensor(given) and given.shape.rank != 0 and given.shape[0] is None
