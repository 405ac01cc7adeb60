"""Into which blocks the weights of a network fall, and the sums that each block is made of.

A part knows two things: what a kernel has to give of it (`raw`, tensors of a batch in a graph),
and what sums to take of that outside of the graph, a slice of the examples at a time.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.layers.channels import split_of
from keras_influence.engine.layers.gradient_part import GradientPart
from keras_influence.engine.layers.matrix_part import MatrixPart
from keras_influence.engine.layers.own import Own
from keras_influence.engine.layers.sites import weights_of
from keras_influence.engine.layers.views import as_matrix
from keras_influence.linalg.factors.kronecker import Channels
from keras_influence.linalg.factors.rows import Formed

OTHERS = "weights in no layer that is covered"


def parts_of(parameters, signals):
    """The parts that cover all of θ.

    Args:
        parameters: the `Parameters` θ.
        signals: `pseudo.PseudoSignals` of the layers that are looked at, which but for an `Own` are
            linear in their weights. What the outputs depend on by other ways too is no layer's.
    """
    parts, taken, sites = [], set(), signals.sites
    seen = [v for v, elsewhere in zip(parameters.variables, signals.elsewhere) if not elsewhere]
    for layer in dict.fromkeys(site.layer for site in sites):
        own = [v for v in weights_of(layer) if any(v is s for s in seen) and id(v) not in taken]
        calls = [site for site in sites if site.layer is layer]
        # In a kernel the number of examples is not known; what has another first axis has no examples.
        by_example = all(site.outputs.shape[0] is None for site in calls)
        view = as_matrix(calls[0])
        if view is not None and any(v is view.kernel for v in own):
            # A matrix that other layers multiply by too is one matrix.
            calls = [site for site in sites if _has(site.layer, view.kernel)]
            part = MatrixPart([site.layer for site in calls], view, parameters, by_example)
            parts.append(part)
            taken |= {id(v) for v in part.weights}
            own = [v for v in own if id(v) not in taken]
        if isinstance(layer, Own):
            for width in sorted({_width(v) for v in own}):
                wide = [v for v in own if _width(v) == width]
                parts.append(GradientPart(layer, wide, parameters))
            taken |= {id(v) for v in own}
            continue
        split = split_of(layer, own)
        if split is not None:
            parts.append(ChannelPart(layer, split, parameters, by_example))
            taken |= {id(v) for v in split.weights}
    rest = [v for v in parameters.variables if id(v) not in taken]
    silent = all(signals.gradients[parameters.index(v)] is None for v in rest)
    return [*parts, RestPart(rest, parameters, silent)] if rest else parts


def _width(variable):
    return variable.shape[-1] if len(variable.shape) else 1


def _has(layer, variable):
    return any(v is variable for v in weights_of(layer))


class ChannelPart:
    """A layer's weights that fall into channels, with an exact block for each.

    Args:
        layer: the layer.
        split: a `Split` of them.
        parameters: θ.
        by_example: whether the first axis of its inputs seems to be that of the examples.
    """

    needs_squares = silent = False

    def __init__(self, layer, split, parameters, by_example):
        self.layers, self._split, self.by_example = (layer,), split, by_example
        self._positions = split.positions(parameters)

    def raw(self, objective, signals):
        """Weight gradients of each example by each call, (b, m, w)."""
        pairs = zip(signals.sites, signals.deltas)
        return [
            self._split.gradients(objective, site, delta)
            for site, delta in pairs
            if site.layer in self.layers
        ]

    def rows(self, raw):
        """How many examples each call saw."""
        return [len(gradients) for gradients in raw]

    def moments(self, raw):
        """[Σ g gᵀ of each channel], (m, w, w)."""
        g = tf.transpose(tf.add_n(raw), [1, 2, 0])
        return [tf.matmul(g, g, transpose_b=True).numpy()]

    def settled(self, moments, per_example):
        """The `Channels`, known from the moments alone."""
        (moment,) = moments
        # Not in half precision, which LAPACK does not know.
        moment = moment.astype(np.result_type(moment, np.float32), copy=False)
        values, vectors = np.linalg.eigh((moment + np.swapaxes(moment, 1, 2)) / 2 * per_example)
        return Channels(
            self.layers[0].path or self.layers[0].name,
            self._positions,
            vectors,
            np.maximum(values, 0),
        )

    def squares(self, raw, block):
        """Nothing: the eigenvalues are known."""
        return []

    def measured(self, block, squares, per_example):
        """The same: nothing was left to be measured."""
        return block

    def coordinates(self, raw, block, chosen):
        """Entries of the gradients in the eigenvectors, of each example, (len(chosen), b)."""
        turned = block.turned(tf.add_n(raw).numpy())
        return turned.reshape(len(turned), -1)[:, chosen].T

    def contributions(self, raw):
        """Each example's gradient, as `Rows`."""
        gradients = tf.add_n(raw).numpy()
        return Formed(self._positions.ravel(), gradients.reshape(len(gradients), -1))


class RestPart:
    """Weights in no layer that is covered: the diagonal.

    A batch's pseudo-gradient has random signs, so that its square has the sum of the examples'
    squares for its mean.

    Args:
        variables: the weights.
        parameters: θ.
        silent: whether the outputs do not depend on them.
    """

    needs_squares = by_example = False

    def __init__(self, variables, parameters, silent):
        self.silent = silent
        self._places = [parameters.index(v) for v in variables]
        self._shapes = [v.shape for v in variables]
        positions = [parameters.positions(v).ravel() for v in variables]
        self._positions = np.concatenate(positions).astype(np.int32)[:, None]

    def raw(self, objective, signals):
        """The batch's gradient, [(r,)]."""
        found = [signals.gradients[i] for i in self._places]
        dense = [
            tf.zeros(shape, signals.miss.dtype) if g is None else tf.convert_to_tensor(g)
            for g, shape in zip(found, self._shapes)
        ]
        return [tf.concat([tf.reshape(g, [-1]) for g in dense], 0)]

    def rows(self, raw):
        """None: it sees the batch as a whole."""
        return []

    def moments(self, raw):
        """[g²], (r,)."""
        return [np.square(raw[0].numpy())]

    def settled(self, moments, per_example):
        """The `Channels` of one weight each."""
        values = moments[0][:, None] * per_example
        ones = np.ones((*values.shape, 1), values.dtype)
        return Channels(OTHERS, self._positions, ones, values, by_example=False, outside=True)

    def squares(self, raw, block):
        """Nothing: the eigenvalues are known."""
        return []

    def measured(self, block, squares, per_example):
        """The same: nothing was left to be measured."""
        return block

    def coordinates(self, raw, block, chosen):
        """None: the part has no examples' gradients."""
        raise NotImplementedError
