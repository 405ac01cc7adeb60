"""Pseudo-gradients of a network part by part, from one kernel: what EK-FAC and contributions are made of."""

import tensorflow as tf

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.kernels.roots import tolerance
from keras_influence.engine.layers.parts import parts_of
from keras_influence.engine.layers.pseudo import (
    contributed_signals,
    pseudo_signals,
    roots_of,
    strengths,
)
from keras_influence.engine.layers.sites import InnerCallError, known_layers
from keras_influence.engine.loss.compiled import Weighting

# Examples on which the form of the outputs' curvature is looked for.
FEW = 8


class PseudoGradients:
    """What pseudo-gradients say of each part of a network, from a kernel that is traced once.

    Args:
        objective: an `Objective`.

    Attributes:
        parts: of `parts`, known once a batch was asked for.
    """

    def __init__(self, objective):
        self._objective = objective
        self.parameters, self.kernels = objective.parameters, Kernels(Weighting, loop=True)
        self._hidden = set()
        self._roots = None
        self.parts = []

    def of(self, batch, weight, seed):
        """The `raw` of each part, for a batch with weighting and two integers."""
        return self._parted(self._raw, batch, weight, seed)

    def contributed(self, batch, weight, columns):
        """The same of `pseudo.contributed_signals`, for a column of each example's root."""
        return self._parted(self._contributed, batch, weight, columns)

    def strengths(self, batch, weight):
        """(b, q) squared norms of the columns of each example's root."""
        found, _ = self._with_roots(self._strengths, batch, weight)
        return found.numpy()

    def _parted(self, raw_of, batch, weight, about):
        try:
            *raw, _ = self._with_roots(raw_of, batch, weight, about)
        except InnerCallError as error:
            self._hide(error.layers)
            return self._parted(raw_of, batch, weight, about)
        count = size_of(batch)
        uneven = [part for part, r in zip(self.parts, raw) if _is_uneven(part, r, count)]
        if uneven:
            self._hide(layer.name for part in uneven for layer in part.layers)
            return self._parted(raw_of, batch, weight, about)
        return raw

    def _with_roots(self, kernel_of, batch, weight, *about):
        """What a kernel gives, the last of which is how far off the form of the roots is."""
        if self._roots is None:
            few = tf.nest.map_structure(lambda t: t[:FEW], batch)
            self._roots = self._find_roots(few, weight)
        found = kernel_of(batch, weight, *about)
        if float(found[-1]) <= tolerance(self.parameters.dtype) * len(self._roots):
            return found
        # The forms were seen where the loss says nothing; what they are, these data tell.
        roots = self._find_roots(batch, weight)
        self._roots = roots if roots != self._roots else ("dense",) * len(roots)
        self.kernels.forget()
        return self._with_roots(kernel_of, batch, weight, *about)

    def _hide(self, layers):
        """Look at the network anew, without these layers."""
        self._hidden |= set(layers)
        self.parts = []
        self.kernels.forget()

    def _find_roots(self, batch, weight):
        with primitives.replaced():
            return roots_of(self._objective, batch, weight.tensors(self.parameters.dtype))

    @kernel("seed")
    def _raw(self, batch, weight, seed):
        found = pseudo_signals(self._objective, self._layers(), batch, weight, seed, self._roots)
        return self._of_parts(found)

    @kernel("columns")
    def _contributed(self, batch, weight, columns):
        about = batch, weight, columns, self._roots
        return self._of_parts(contributed_signals(self._objective, self._layers(), *about))

    @kernel()
    def _strengths(self, batch, weight):
        return strengths(self._objective, batch, weight, self._roots)

    def _layers(self):
        layers = known_layers(self._objective.model(), self.parameters.variables)
        return [layer for layer in layers if layer.name not in self._hidden]

    def _of_parts(self, found):
        if not self.parts:
            self.parts = parts_of(self.parameters, found)
        return [*(part.raw(self._objective, found) for part in self.parts), found.miss]


def _is_uneven(part, raw, count):
    """Whether a part's calls cannot stand side by side, or their rows should be examples and are not."""
    rows = set(part.rows(raw))
    return len(rows) > 1 or (part.rows_are_examples and rows != {count})
