"""Scores and example gradients by layers: one forward and one backward for all vectors.

The plain way, `Objective.scores`, needs a second backward for each vector. Where every
weight belongs to a layer that is looked at, `sites.signals` gives each layer's input a and
output gradients δ once. Where the layer is linear in its weights, there are two ways to go on:

    apply   ⟨∇ℓᵢ, s⟩ = Σ_layers ⟨f(aᵢ; s), δᵢ⟩        a forward of the layer for each vector
    form    gᵢ = ∂⟨f(aᵢ; w), δᵢ⟩/∂w, then gᵢᵀ s       a backward of the layer, then one product

A layer that uses each weight at P positions of an example (pixels, time steps) pays about
P·p per vector to apply, and P·p once and p per vector to form; formed gradients of a batch
take b·p numbers of memory. So: one vector is applied; many are formed where P > 1 (or where
the weights are few) and applied where P = 1 or the weights are too many to be formed.
What is not linear is formed. `_forms` is where this is decided. Memory: see `VECTORS`.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.kernels.loops import over_vectors
from keras_influence.engine.layers.gradients import weight_gradients
from keras_influence.engine.layers.own import Own
from keras_influence.engine.layers.sites import apply, known_layers, signals, weights_of
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.terms import sum_by_example

# Vectors that are taken together; the largest array in a kernel is that of one layer: for each
# example of a batch its patches, or `_LARGE` numbers, or `VECTORS` outputs of a dense layer.
VECTORS = 128
# Layers with fewer weights are always formed; with more never: a batch of gradients is too large.
_SMALL, _LARGE = 1000, 2**18
# Dense layers with fewer units than this are too narrow for a product per vector.
_NARROW = 64


class Contraction:
    """What `Objective.scores` and `.example_gradients` give, from layer inputs and gradients.

    Args:
        objective: an `Objective`.

    Attributes:
        covers: whether each weight belongs to a layer that is looked at. Whether the contraction
            is then right, `scoring` certifies on every batch.
    """

    def __init__(self, objective):
        self._objective = objective
        self.parameters = objective.parameters
        self.kernels = Kernels(Weighting, loop=True)
        held = {id(v) for layer in self._layers() for v in weights_of(layer)}
        covered = all(id(v) in held for v in self.parameters.variables)
        self.covers = covered and not objective.adds_by_example

    def _layers(self):
        return known_layers(self._objective.model(), self.parameters.variables)

    # ---- kernels, as those of `Objective`

    @kernel()
    def example_gradients(self, batch, weight):
        """∇ℓ(z) of each example, (b, p), without the regulariser."""
        return tf.concat(self._formed_gradients(batch, weight), axis=1)

    @kernel("vectors")
    def scores(self, batch, weight, vectors):
        """⟨∇_j, s⟩ for each example j and each row s, (b, k)."""
        sites, deltas = self._signals(batch, weight)
        many = vectors.shape[0] != 1
        formed = [(s, d) for s, d in zip(sites, deltas) if _forms(s, many)]
        others = [(s, d) for s, d in zip(sites, deltas) if not _forms(s, many)]
        total = 0.0
        if others:
            total += self._applied(*zip(*others), vectors)
        starts = np.cumsum([0, *self.parameters.sizes])
        for i, gradient in self._formed(formed).items():
            part = vectors[:, starts[i] : starts[i + 1]]
            total += tf.matmul(gradient, part, transpose_b=True)
        return total

    def numbers(self):
        """About how many numbers `scores` makes for each example."""
        layers = self._layers()
        # All that is formed is there at once, of the dense layers one at a time.
        formed = sum(_weights(layer) for layer in layers if _may_form(layer))
        wide = [layer.units for layer in layers if isinstance(layer, keras.layers.Dense)]
        return formed + VECTORS * max(wide, default=0)

    def _signals(self, batch, weight):
        return signals(self._objective, self._layers(), batch, weight)

    def _applied(self, sites, deltas, vectors):
        """Σ_sites ⟨f(aᵢ; s), δᵢ⟩ for each row s, (b, k)."""
        many = vectors.shape[0] != 1
        pairs = list(zip(sites, deltas))
        total = tf.add_n(
            [self._dense(s, d, vectors) for s, d in pairs if many and _is_dense(s)]
            or [tf.zeros([tf.shape(deltas[0])[0], tf.shape(vectors)[0]], vectors.dtype)]
        )
        pairs = [(s, d) for s, d in pairs if not (many and _is_dense(s))]

        def product(s):
            with self._objective.with_values(self._values(sites, s)):
                outputs = [apply(site) for site, _ in pairs]
            return tf.add_n([sum_by_example(z * d) for z, (_, d) in zip(outputs, pairs)])

        if not pairs:
            return total
        return total + tf.transpose(over_vectors(product, vectors, loop=True))

    def _dense(self, site, delta, vectors):
        """`_applied` for one dense layer of flat inputs, by large products of matrices."""
        (depth, width), k = site.layer.kernel.shape, tf.shape(vectors)[0]
        total = 0.0
        for v, part in self._values([site], vectors):
            if v is site.layer.bias:
                total += tf.matmul(delta, part, transpose_b=True)
            elif width < _NARROW:
                # One product for all vectors, at the price of a transposed copy of them.
                wide = tf.reshape(tf.transpose(part, [1, 0, 2]), [depth, k * width])
                z = tf.reshape(tf.matmul(site.inputs, wide), [-1, k, width])
                total += tf.reduce_sum(z * delta[:, None], axis=2)
            else:
                z = tf.matmul(site.inputs[None], part)
                total += tf.transpose(tf.reduce_sum(z * delta, axis=2))
        return total

    def _values(self, sites, vectors):
        """Pairs of a weight and its part of `vectors`, (..., p); zero for one that is not in θ."""
        weights = {id(v): v for site in sites for v in weights_of(site.layer)}
        values, leading = [], tf.shape(vectors)[:-1]
        for v in weights.values():
            shape = tf.concat([leading, v.shape], 0)
            place = self.parameters.part(v)
            if place is not None:
                part = tf.reshape(vectors[..., place], shape)
                part = tf.ensure_shape(part, [*vectors.shape[:-1], *v.shape])
            else:
                part = tf.zeros(shape, vectors.dtype)
            values.append((v, part))
        return values

    def _formed_gradients(self, batch, weight):
        """∇ of each example as a list of (b, size) for the variables."""
        sites, deltas = self._signals(batch, weight)
        formed = self._formed(zip(sites, deltas))
        rows = tf.shape(deltas[0])[0]
        sizes = enumerate(self.parameters.sizes)
        return [formed.get(i, tf.zeros([rows, size], self.parameters.dtype)) for i, size in sizes]

    def _formed(self, pairs):
        """∂⟨f(aᵢ; w), δᵢ⟩/∂w for the weights of these sites, by index in θ."""
        found = {}
        for site, delta in pairs:
            weights = [v for v in weights_of(site.layer) if self.parameters.index(v) is not None]
            for v, gradient in zip(
                weights, weight_gradients(self._objective, site, delta, weights)
            ):
                i = self.parameters.index(v)
                flat = tf.reshape(gradient, [tf.shape(delta)[0], self.parameters.sizes[i]])
                found[i] = found[i] + flat if i in found else flat
        return found


def _forms(site, many):
    """Whether gradients are formed: they have to be, or `many` vectors are cheaper with them.

    They are where each weight is used more than once.
    """
    if isinstance(site.layer, Own):
        return True  # What it gives need not be linear in the weights.
    if not many or isinstance(site.layer, keras.layers.Embedding):
        return False  # Each example uses a few of its rows.
    size = _weights(site.layer)
    return size < _SMALL or (site.outputs.shape.rank > 2 and size <= _LARGE)


def _may_form(layer):
    """Whether `_forms` may be true of one of a layer's calls."""
    if isinstance(layer, keras.layers.Embedding) or _weights(layer) > _LARGE:
        return False
    try:
        return _weights(layer) < _SMALL or len(layer.output.shape) > 2
    except (AttributeError, ValueError):  # It was called by hand, or has many outputs.
        return True


def _weights(layer):
    return sum(int(np.prod(v.shape)) for v in weights_of(layer))


def _is_dense(site):
    return isinstance(site.layer, keras.layers.Dense) and site.outputs.shape.rank == 2
