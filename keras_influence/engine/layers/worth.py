"""What the layers' blocks and the examples' contributions cost, and whether they are worth it."""

import functools
from typing import NamedTuple

import keras
import numpy as np

from keras_influence.engine.kernels.loops import work_alone
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.layers.sites import known_layers, weights_of
from keras_influence.engine.passes.passes import spread
from keras_influence.linalg.eigenvectors import LARGEST
from keras_influence.linalg.operators.network import BYTES, Contributions

# Multiplications of a product with the curvature, in those of a forward pass.
_PRODUCT = 3
# Operations of an eigendecomposition, in those of a multiplication of two such matrices.
_EIGENVECTORS = 10
# Contributions beyond which their inner products take long; the part of all that they should be;
# and how many of an example.
_MOST, _PART, _EACH = 4000, 0.2, 64
# Operations that their inner products may take, in those of a forward and backward pass.
_INNER = 500
_PASS = 6
# Floating-point operations in the time that it takes to trace what blocks or contributions are made
# of, for each operation of the gradient's graph: somewhat more than a millisecond. There are so many at least.
_TRACED, _FEWEST = 6e7, 100
# Of the matrix written out by contributions: passes of an example in the time that one of them takes;
# operations of products of large matrices in the time of one of a pass, and operations in that of a
# multiplication of two arrays' entries; and operations of a product with one of many vectors, for each
# multiplication of a forward pass.
_EXAMPLE, _LARGE, _ENTRY, _VECTOR = 2, 4, 50, 3.6
# Bytes of a number with fewer digits than such a sum needs.
_COARSE = 4


class Assembling(NamedTuple):
    """What it takes to write the matrix out by contributions of single examples.

    Attributes:
        operations: floating-point operations in the same time.
        vectors: as many as are multiplied in the same time.
        numbers: in what is held of an example.
    """

    operations: float
    vectors: float
    numbers: float


class Worth:
    """What it costs to know a loss's curvature by its layers, and where that is less than by products.

    Args:
        objective: an `Objective`.
        footprint: of one example.
        batches: the training data.
    """

    def __init__(self, objective, footprint, batches):
        self._objective, self._footprint, self._batches = objective, footprint, batches

    @functools.cached_property
    def layers(self):
        """The layers that are known, in pieces; see `known_layers`."""
        return known_layers(self._objective.model(), self._objective.parameters.variables)

    @functools.cached_property
    def _known(self):
        """The variables of θ that are in layers with blocks."""
        held = {id(v) for layer in self.layers for v in weights_of(layer)}
        return [v for v in self._objective.parameters.variables if id(v) in held]

    @functools.cached_property
    def all_known(self):
        """Whether blocks and contributions are of all weights, and of a loss of the outputs."""
        has_outputs = self._objective.reading.has_outputs(self._objective.model())
        return has_outputs and len(self._known) == len(self._objective.parameters.variables)

    def costs(self):
        """What products cost, and what stands for them, for who chooses a solver by that; see `Auto`."""
        workers, written_out = spread(self._batches), self.assembling()
        return {
            "work": self._footprint.work,
            "contributions": self.contributions(),
            "bases": self._operations() if self.blocks() else None,
            "batches": len(self._batches) / max(1, workers),
            "alone": work_alone(self._objective.model()),
            "tracing": self._tracing(),
            "assembling": written_out and written_out.operations,
            "workers": workers,
        }

    def blocks(self):
        """Whether the layers' blocks precondition well for what they cost.

        All of θ has to be in layers that are known: where a few weights were not, what they have to
        do with the others left more iterations than a sketch does. And turning a vector into their
        bases should take no longer than two products with the curvature.
        """
        turning = sum(2 * _size(v) * sum(_sides(v)) for v in self._known)
        return self.all_known and turning <= 2 * _PRODUCT * self._footprint.work * self._batches.n

    def _operations(self):
        """Floating-point operations that the bases of the blocks take, besides passes over the data."""
        sides = [side for v in self._known for side in _sides(v) if side <= LARGEST]
        return sum(_EIGENVECTORS * 2.0 * side**3 for side in sides)

    def _tracing(self):
        """Floating-point operations in the time that tracing what they are made of takes."""
        objective = self._objective
        return _TRACED * max(_FEWEST, objective.kernels.operations(objective.value_and_gradient))

    def contributions(self):
        """Whether the strongest contributions of examples precondition well for what they cost.

        They are to be a good part of all, as they are where examples and outputs are few, far fewer
        than the parameters, and known of all of these.

        Returns:
            `Contributions`, or None where they are not worth it.
        """
        n, parameters = self._batches.n, self._objective.parameters
        total = n * self._footprint.outputs
        count = min(total, _MOST, _EACH * n)
        numbers = sum(_row(layer) for layer in self.layers)
        nbytes = count * numbers * parameters.dtype.size
        operations = 2.0 * count**2 * numbers + count**3 / 3
        worth_it = (
            count >= _PART * total
            and 2 * count <= parameters.size
            and self.all_known
            and nbytes <= BYTES
            and operations <= _INNER * _PASS * self._footprint.work * n
        )
        return Contributions(count, count == total, operations) if worth_it else None

    def assembling(self):
        """What it takes to write the matrix out by contributions, where that is less than by products.

        Returns:
            `Assembling`, or None where products are cheaper, not all contributions are known, numbers
            are too coarse, or the data are elsewhere: the matrix would have to be sent for each part
            of them.
        """
        objective, batches = self._objective, self._batches
        if objective.parameters.dtype.size < _COARSE or spread(batches) or not self.all_known:
            return None
        each, work = self._footprint.outputs, self._footprint.work
        shared = [layer for layer in self.layers if each > 1 and _is_product(layer)]
        products = float(sum(_own_size(layer) for layer in shared))
        others = float(objective.parameters.size - products)
        outputs = sum(layer.kernel.shape[-1] for layer in shared)
        entries = outputs * (products / 2 + each * others)
        multiplied = products**2 + 2 * products * others + each * others**2
        passes = _EXAMPLE * each * _PASS * work
        operations = batches.n * (passes + multiplied / _LARGE + _ENTRY * entries)
        operations += 0 if objective.has_made(PseudoGradients) else self._tracing()
        product = _VECTOR * work * batches.n + work_alone(objective.model()) * len(batches)
        if operations >= objective.parameters.size * product:
            return None
        numbers = sum(sum(layer.kernel.shape) for layer in shared) + each * (others + outputs)
        return Assembling(operations, operations / product, numbers)


def _is_product(layer):
    """Whether a contribution is a product there, of inputs and of what comes back."""
    return isinstance(layer, keras.layers.Dense) and len(_output_shape(layer)) == 2


def _own_size(layer):
    return sum(_size(v) for v in weights_of(layer))


def _output_shape(layer):
    try:
        return layer.output.shape
    except (AttributeError, ValueError):  # It was called by hand, or has many outputs.
        return ()


def _row(layer):
    """Numbers that a contribution takes in a layer."""
    shape = _output_shape(layer)
    if _is_product(layer):
        return sum(layer.kernel.shape) + 1
    if isinstance(layer, keras.layers.Embedding) and shape and None not in shape[1:]:
        return 3 * int(np.prod(shape[1:]))
    return _own_size(layer)


def _size(variable):
    return int(np.prod(variable.shape))


def _sides(variable):
    """Rows and columns of a kernel as a matrix; none of what acts on channels."""
    shape = variable.shape
    return (int(np.prod(shape[:-1])), int(shape[-1])) if len(shape) > 1 else ()
