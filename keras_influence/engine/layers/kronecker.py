"""The eigenvalue-corrected Kronecker factors of a network's Gauss-Newton matrix (EK-FAC).

A layer with weights W (K, O), inputs a and pseudo-gradients δ at its output adds Σ_t a_t δ_tᵀ
to the gradient of an example. With A = E[a aᵀ] = Q_A · Q_Aᵀ and S = E[δ δᵀ] = Q_S · Q_Sᵀ,
its block of the matrix is close to diagonal in the basis Q_A ⊗ Q_S, and the diagonal there
is measured: Λ = E[(Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)²] (George et al. 2018; Grosse et al. 2023, §2.2).
The bias is one more row of W, whose input is 1.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.layers.sites import InnerCallError, linear_layers, signals
from keras_influence.engine.layers.views import as_matrix
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.looks import computing
from keras_influence.linalg.factors.kronecker import Block


def blocks(objective, batches, facts, regulariser, pseudo_gradients, seed):
    """The `Block`s of all layers that are covered, in two passes over the data.

    Args:
        objective: an `Objective`.
        batches: the training data, n examples.
        facts: what holds for the loss on them, `Facts`.
        regulariser: (p,) diagonal of the regulariser's Hessian.
        pseudo_gradients: how many for each example.
        seed: of these.
    """
    matrices = _covered(objective, batches, facts)
    if not matrices:
        return ()
    statistics = _Statistics(objective, matrices, facts)
    bases = statistics.bases(batches, pseudo_gradients, seed)
    total = statistics.eigenvalues(batches, bases, pseudo_gradients, seed)
    per_example = 1.0 / batches.n
    found = []
    for layer, (q_inputs, q_outputs), value in zip(matrices, bases, total):
        positions = matrices[layer]
        extra = _in_basis(regulariser[positions], q_inputs, q_outputs)
        eigenvalues = per_example / pseudo_gradients * value + extra
        found.append(Block(layer.path, positions, q_inputs, q_outputs, eigenvalues))
    return tuple(found)


def _covered(objective, batches, facts):
    """{layer: positions in θ of its weights as a (K, O) matrix} for the layers covered."""
    layers = linear_layers(objective.model(), objective.parameters.variables)
    return _seen(objective, layers, batches.head(2), facts.train())


def _seen(objective, layers, batch, weight):
    """The same for those of some layers whose calls can be seen from outside."""
    try:
        return _matrices(objective, layers, batch, weight)
    except InnerCallError as error:
        others = [layer for layer in layers if layer.name not in error.layers]
    return _seen(objective, others, batch, weight)


def _matrices(objective, layers, batch, weight):
    """The same for layers that are all seen, in a graph as kernels have it."""
    flat, found = tf.nest.flatten(batch), {}
    vector = tf.constant(weight.vector(), objective.parameters.dtype)

    def trace(flat):
        traced = tf.nest.pack_sequence_as(batch, flat)
        for site in signals(objective, layers, traced, type(weight).of(vector))[0]:
            view = as_matrix(site)
            if view is not None and objective.parameters.index(view.kernel) is not None:
                found[site.layer] = view.positions(objective.parameters)
        return tf.constant(0)

    tf.function(trace, autograph=False).get_concrete_function(
        [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in flat]
    )
    return found


def _in_basis(diagonal, q_inputs, q_outputs):
    """The diagonal of Qᵀ diag(d) Q for Q = Q_A ⊗ Q_S, (K, O)."""
    turned = diagonal @ q_outputs.astype(np.float64) ** 2
    return (q_inputs.T.astype(np.float64) ** 2) @ turned if q_inputs.size else turned


def _eigenvectors(matrix):
    return np.linalg.eigh(matrix)[1]


class _Statistics:
    """The two passes over the data: covariances, then eigenvalues in their eigenbases.

    Args:
        matrices: {layer: positions}, as in `Block.positions`.
    """

    def __init__(self, objective, matrices, facts):
        self._objective, self._matrices, self._facts = objective, matrices, facts
        self.parameters, self.kernels = objective.parameters, Kernels(Weighting, loop=True)
        self._seed = tf.Variable([0, 0], trainable=False)
        self._bases = []

    def bases(self, batches, pseudo_gradients, seed):
        """(Q_A, Q_S) of each layer."""
        total = self._sum(self._covariances, batches, pseudo_gradients, seed)
        return [(_eigenvectors(a), _eigenvectors(s)) for a, s in total]

    def eigenvalues(self, batches, bases, pseudo_gradients, seed):
        """Σ (Q_Aᵀ G Q_S)² of each layer, over examples and samples."""
        dtype = self.parameters.dtype
        self._bases = [[tf.constant(q, dtype) for q in pair] for pair in bases]
        return [s for (s,) in self._sum(self._squares, batches, pseudo_gradients, seed)]

    def _sum(self, statistic, batches, pseudo_gradients, seed):
        total = None
        for number, batch in enumerate(batches):
            for sample in range(pseudo_gradients):
                self._seed.assign([seed + sample, number])
                with computing("train"):
                    found = statistic(batch, self._facts.train())
                parts = tf.nest.map_structure(lambda t: t.numpy().astype(np.float64), found)
                total = parts if total is None else tf.nest.map_structure(np.add, total, parts)
        return total

    @kernel()
    def _covariances(self, batch, weight):
        return [_covariance(*signals) for _, *signals in self._stacked(batch, weight)]

    @kernel()
    def _squares(self, batch, weight):
        pairs = zip(self._stacked(batch, weight), self._bases)
        return [(_square(*layer, *basis),) for layer, basis in pairs]

    def _stacked(self, batch, weight):
        """K, inputs a (b, T, K), or indices (b, T), and δ (b, T, O) of each layer.

        The calls of a layer that is called more than once stand side by side.
        """
        seed = self._seed.read_value()
        found = signals(self._objective, list(self._matrices), batch, weight, seed)
        for layer, positions in self._matrices.items():
            calls = [
                as_matrix(site).signals(delta, height=len(positions))
                for site, delta in zip(*found)
                if site.layer is layer
            ]
            yield len(positions), *(tf.concat(parts, 1) for parts in zip(*calls))


def _covariance(a, delta):
    """Σ a aᵀ and Σ δ δᵀ over examples and positions; no A for indices."""
    outputs = tf.einsum("bto,btp->op", delta, delta)
    if a.dtype.is_integer:
        return tf.zeros([0, 0], delta.dtype), outputs
    # An example without weight has no δ; its input should not count either.
    a = a * tf.cast(tf.reduce_any(delta != 0, 2, keepdims=True), a.dtype)
    return tf.einsum("btk,btl->kl", a, a), outputs


def _square(height, a, delta, q_inputs, q_outputs):
    """Σ over examples of (Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)², (K, O)."""
    delta = delta @ tf.cast(q_outputs, delta.dtype)
    if a.dtype.is_integer:
        return _square_of_indices(a, delta, height)
    a = a @ tf.cast(q_inputs, a.dtype)
    if a.shape[1] == 1:
        return tf.matmul(tf.square(a[:, 0]), tf.square(delta[:, 0]), transpose_a=True)
    zero = tf.zeros([a.shape[2], delta.shape[2]], delta.dtype)
    return tf.foldl(_add_square, (a, delta), zero)


def _add_square(total, pair):
    return total + tf.square(tf.matmul(*pair, transpose_a=True))


def _square_of_indices(indices, delta, height):
    """The same where a_t is the unit vector of an index: equal indices of an example add up."""
    example = tf.range(tf.shape(indices)[0])[:, None]
    keys, places = tf.unique(tf.reshape(example * height + indices, [-1]))
    flat = tf.reshape(delta, [-1, delta.shape[2]])
    sums = tf.math.unsorted_segment_sum(flat, places, tf.size(keys))
    return tf.math.unsorted_segment_sum(tf.square(sums), keys % height, height)
