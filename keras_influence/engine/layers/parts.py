"""Into which blocks the weights of a network fall, and the sums that each block is made of.

A part knows two things: what a kernel has to give of it (`raw`, tensors of a batch in a graph),
and what sums to take of that outside of the graph, a slice of the examples at a time.
"""

import numpy as np
import scipy.linalg
import tensorflow as tf

from keras_influence.engine.layers.channels import split_of
from keras_influence.engine.layers.sites import Site, weights_of
from keras_influence.engine.layers.views import as_matrix
from keras_influence.linalg.factors.kronecker import Block, Channels

# Numbers in the largest array that a sum makes: examples are taken so many at a time.
_NUMBERS = 2**24
# A side of a matrix with more than this has no eigenbasis: its own axes stand in for it.
_LARGEST = 6000
OTHERS = "weights in no layer that is covered"


def parts_of(parameters, sites):
    """The parts that cover all of θ.

    Args:
        parameters: the `Parameters` θ.
        sites: of the layers that are linear in their weights, from `pseudo.pseudo_signals`.
    """
    parts, taken = [], set()
    for layer in dict.fromkeys(site.layer for site in sites):
        own = [v for v in weights_of(layer) if parameters.index(v) is not None]
        own = [v for v in own if id(v) not in taken]
        view = as_matrix(next(site for site in sites if site.layer is layer))
        if view is not None and any(v is view.kernel for v in own):
            part = MatrixPart(layer, view, parameters)
            parts.append(part)
            taken |= {id(v) for v in part.weights}
            own = [v for v in own if id(v) not in taken]
        split = split_of(layer, own)
        if split is not None:
            parts.append(ChannelPart(layer, split, parameters))
            taken |= {id(v) for v in split.weights}
    rest = [v for v in parameters.variables if id(v) not in taken]
    return [*parts, RestPart(rest, parameters)] if rest else parts


class MatrixPart:
    """A layer's kernel as a matrix W (K, O), in the eigenbases of its two covariances.

    Args:
        layer: the layer.
        view: a `View` of one of its calls.
        parameters: θ.
    """

    needs_squares = True

    def __init__(self, layer, view, parameters):
        self._layer = layer
        self.weights = [view.kernel]
        if view.bias is not None and parameters.index(view.bias) is not None:
            self.weights.append(view.bias)
        self._positions = view.positions(parameters).astype(np.int32)
        self.size = self._positions.size
        self._bases = None

    def raw(self, objective, signals):
        """Pairs of the input and δ of each call."""
        pairs = zip(signals.sites, signals.deltas)
        return [(site.inputs, delta) for site, delta in pairs if site.layer is self._layer]

    def moments(self, raw):
        """[Σ a aᵀ, Σ δ δᵀ] over examples and positions; empty where there is to be no basis."""
        height, width = self._positions.shape
        no_basis = np.zeros((0, 0), np.float32)
        total = [0.0 if height <= _LARGEST else no_basis, 0.0 if width <= _LARGEST else no_basis]
        for a, delta in self._slices(raw, 0):
            if width <= _LARGEST:
                flat = tf.reshape(delta, [-1, width])
                total[1] = total[1] + tf.matmul(flat, flat, transpose_a=True).numpy()
            if a.dtype.is_integer:
                total[0] = no_basis
            elif height <= _LARGEST:
                # An example without weight has no δ; its input should not count either.
                a = a * tf.cast(tf.reduce_any(delta != 0, 2, keepdims=True), a.dtype)
                flat = tf.reshape(a, [-1, height])
                total[0] = total[0] + tf.matmul(flat, flat, transpose_a=True).numpy()
        return total

    def settle(self, moments, per_example):
        """Take the eigenbases of the moments."""
        del per_example
        self._bases = [_eigenvectors(moment) for moment in moments]

    def squares(self, raw):
        """[Σ over examples of (Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)²], (K, O)."""
        total = 0.0
        for a, delta in self._slices(raw, self._positions.size):
            delta = _turned(delta, self._bases[1])
            if a.dtype.is_integer:
                found = _square_of_indices(a, delta, len(self._positions))
            else:
                a = _turned(a, self._bases[0])
                if a.shape[1] == 1:
                    pair = tf.square(a[:, 0]), tf.square(delta[:, 0])
                    found = tf.matmul(*pair, transpose_a=True)
                else:
                    found = tf.reduce_sum(tf.square(tf.matmul(a, delta, transpose_a=True)), 0)
            total = total + found.numpy()
        return [total]

    def coordinates(self, raw, chosen):
        """Entries of Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S of each example, (b, len(chosen))."""
        height, width = self._positions.shape
        rows, columns = np.divmod(chosen, width)
        found = []
        for a, delta in self._slices(raw, len(chosen) * 4):
            delta = tf.gather(_turned(delta, self._bases[1]), columns, axis=2)
            if a.dtype.is_integer:
                a = tf.cast(a[..., None] == tf.constant(rows, a.dtype), delta.dtype)
            else:
                a = tf.gather(_turned(a, self._bases[0]), rows, axis=2)
            found.append(tf.reduce_sum(a * delta, 1).numpy())
        return np.concatenate(found)

    def block(self, squares, per_example, regulariser):
        """The `Block` without damping."""
        q_inputs, q_outputs = self._bases
        extra = regulariser[self._positions]
        extra = extra @ q_outputs**2 if q_outputs.size else extra
        self.extra = q_inputs.T**2 @ extra if q_inputs.size else extra
        eigenvalues = per_example * squares[0] + self.extra
        return Block(
            self._layer.path,
            self._positions,
            q_inputs,
            q_outputs,
            eigenvalues.astype(squares[0].dtype),
        )

    def _slices(self, raw, each):
        """a (b, T, K), or indices (b, T), and δ (b, T, O), for some of the examples at a time.

        The calls of a layer that is called more than once stand side by side.

        Args:
            each: numbers that are made for each example besides a and δ.
        """
        height, width = self._positions.shape
        count = int(raw[0][1].shape[0])
        positions = sum(int(np.prod(delta.shape[1:])) for _, delta in raw) // max(width, 1)
        step = max(1, _NUMBERS // max(positions * (height + width) + each, 1))
        for start in range(0, count, step):
            some = slice(start, start + step)
            calls = []
            for inputs, delta in raw:
                view = as_matrix(Site(self._layer, (inputs[some],), {}, None))
                calls.append(view.signals(delta[some], height))
            yield tuple(tf.concat(parts, 1) for parts in zip(*calls))


class ChannelPart:
    """A layer's weights that fall into channels, with an exact block for each.

    Args:
        layer: the layer.
        split: a `Split` of them.
        parameters: θ.
    """

    needs_squares = False

    def __init__(self, layer, split, parameters):
        self._layer, self._split = layer, split
        self._positions = split.positions(parameters)
        self.size = self._positions.size
        self._vectors = self._values = None

    def raw(self, objective, signals):
        """Weight gradients of each example, [(b, m, w)]."""
        pairs = zip(signals.sites, signals.deltas)
        gradients = [
            self._split.gradients(objective, site, delta)
            for site, delta in pairs
            if site.layer is self._layer
        ]
        return [tf.add_n(gradients)]

    def moments(self, raw):
        """[Σ g gᵀ of each channel], (m, w, w)."""
        g = tf.transpose(raw[0], [1, 2, 0])
        return [tf.matmul(g, g, transpose_b=True).numpy()]

    def settle(self, moments, per_example):
        """Take eigenvectors and eigenvalues."""
        (moment,) = moments
        self._values, self._vectors = np.linalg.eigh(_symmetric(moment) * per_example)
        self._values = np.maximum(self._values, 0)

    def squares(self, raw):
        """Nothing: the eigenvalues are known."""
        return []

    def coordinates(self, raw, chosen):
        """Entries of the gradients in the eigenvectors, of each example, (b, len(chosen))."""
        turned = np.matmul(raw[0].numpy()[:, :, None, :], self._vectors)[:, :, 0, :]
        return turned.reshape(len(turned), -1)[:, chosen]

    def block(self, squares, per_example, regulariser):
        """The `Channels` without damping."""
        self.extra = np.einsum("mvw,mv->mw", self._vectors**2, regulariser[self._positions])
        values = (self._values + self.extra).astype(self._vectors.dtype)
        return Channels(self._layer.path, self._positions, self._vectors, values)


class RestPart:
    """Weights in no layer that is covered: the diagonal.

    A batch's pseudo-gradient has random signs, so that its square has the sum of the examples'
    squares for its mean.

    Args:
        variables: the weights.
        parameters: θ.
    """

    needs_squares = False

    def __init__(self, variables, parameters):
        self._places = [parameters.index(v) for v in variables]
        self._shapes = [v.shape for v in variables]
        positions = [parameters.positions(v).ravel() for v in variables]
        self._positions = np.concatenate(positions).astype(np.int32)[:, None]
        self.size = self._positions.size
        self._values = None

    def raw(self, objective, signals):
        """The batch's gradient, [(r,)]."""
        found = [signals.gradients[i] for i in self._places]
        dense = [
            tf.zeros(shape, signals.miss.dtype) if g is None else tf.convert_to_tensor(g)
            for g, shape in zip(found, self._shapes)
        ]
        return [tf.concat([tf.reshape(g, [-1]) for g in dense], 0)]

    def moments(self, raw):
        """[g²], (r,)."""
        return [np.square(raw[0].numpy())]

    def settle(self, moments, per_example):
        """Keep the diagonal."""
        self._values = moments[0] * per_example

    def squares(self, raw):
        """Nothing: the eigenvalues are known."""
        return []

    def coordinates(self, raw, chosen):
        """None: the part has no examples' gradients."""
        raise NotImplementedError

    def block(self, squares, per_example, regulariser):
        """The `Channels` without damping, of one weight each."""
        self.extra = regulariser[self._positions]
        values = self._values[:, None] + self.extra
        ones = np.ones((*self._positions.shape, 1), self._values.dtype)
        return Channels(OTHERS, self._positions, ones, values.astype(self._values.dtype), True)


def _turned(t, basis):
    return t @ tf.cast(basis, t.dtype) if basis.size else t


def _symmetric(matrices):
    return (matrices + np.swapaxes(matrices, -1, -2)) / 2


def _eigenvectors(moment):
    if not moment.size:
        return moment
    return scipy.linalg.eigh(_symmetric(moment), driver="evd", overwrite_a=True)[1]


def _square_of_indices(indices, delta, height):
    """Σ over examples of squares where a_t is the unit vector of an index: equal ones add up."""
    example = tf.range(tf.shape(indices)[0])[:, None]
    keys, places = tf.unique(tf.reshape(example * height + indices, [-1]))
    flat = tf.reshape(delta, [-1, delta.shape[2]])
    sums = tf.math.unsorted_segment_sum(flat, places, tf.size(keys))
    return tf.math.unsorted_segment_sum(tf.square(sums), keys % height, height)
