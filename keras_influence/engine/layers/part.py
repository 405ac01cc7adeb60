"""What the parts that the weights of a network fall into have in common.

A part knows two things: what a kernel has to give of it (`raw`, tensors of a batch in a graph),
and what sums to take of that outside of the graph, a slice of the examples at a time. From its
`moments` a block is `settled`; from `squares` in that block's basis, if it needs them, `measured`.
"""

import dataclasses

import numpy as np

from keras_influence.linalg.factors.blocks import Block


class Part:
    """Some of the weights, with a block of the matrix for them.

    Attributes:
        layers: those whose calls it is about.
        needs_squares: whether its eigenvalues are measured in its basis, by one more pass.
        silent: whether the outputs do not depend on its weights.
        by_example: whether the first axis of what it sees seems to be that of the examples.
        rows_are_examples: whether each call has to have as many rows as there are examples.
    """

    layers = ()
    needs_squares = silent = by_example = rows_are_examples = False

    @property
    def name(self):
        """What its block is called."""
        return self.layers[0].path or self.layers[0].name

    def arrays(self, moments):
        """What its moments are made of."""
        return moments

    def squares(self, raw, block):
        """Nothing: the eigenvalues are known."""
        return []

    def measured(self, block, squares, per_example):
        """The same: nothing was left to be measured."""
        return block


class EigenPart(Part):
    """Weights as a matrix (K, O), in the eigenbases of two second moments; `_positions` are theirs in θ."""

    needs_squares = True

    def settled(self, moments, per_example):
        """A `Block` with the eigenbases of the moments, its eigenvalues still to be measured."""
        bases = [moment.settled() for moment in moments]
        sizes = [b.shape[1] if b.size else n for b, n in zip(bases, self._positions.shape)]
        return Block(self.name, self._positions, *bases, np.zeros(sizes))

    def arrays(self, moments):
        """As of all parts."""
        return [array for moment in moments for array in moment.arrays]

    def measured(self, block, squares, per_example):
        """The block with its eigenvalues."""
        return dataclasses.replace(block, eigenvalues=squares[0] * per_example)
