"""What the layers' blocks cost, and whether they are worth it."""

import numpy as np

from keras_influence.engine.layers.matrix_part import LARGEST
from keras_influence.engine.layers.sites import linear_layers, weights_of

# Multiplications of a product with the curvature, in those of a forward pass.
_PRODUCT = 3
# Operations of an eigendecomposition, in those of a multiplication of two such matrices.
_EIGENVECTORS = 10


def are_worth_it(objective, work):
    """Whether the layers' blocks precondition well for what they cost.

    Most of θ has to be in layers that are known, and turning a vector into their bases should
    take no longer than two products with the curvature.

    Args:
        objective: an `Objective`.
        work: multiplications of a forward pass over all of the data.
    """
    known = _known(objective)
    covered = sum(_size(v) for v in known)
    turning = sum(2 * _size(v) * sum(_sides(v)) for v in known)
    return covered > objective.parameters.size / 2 and turning <= 2 * _PRODUCT * work


def operations(objective):
    """Floating-point operations that the bases of the blocks take, besides passes over the data."""
    sides = [side for v in _known(objective) for side in _sides(v) if side <= LARGEST]
    return sum(_EIGENVECTORS * 2.0 * side**3 for side in sides)


def _known(objective):
    """The variables of θ that are in layers with blocks."""
    variables = objective.parameters.variables
    layers = linear_layers(objective.model(), variables)
    held = {id(v) for layer in layers for v in weights_of(layer)}
    return [v for v in variables if id(v) in held]


def _size(variable):
    return int(np.prod(variable.shape))


def _sides(variable):
    """Rows and columns of a kernel as a matrix; none of what acts on channels."""
    shape = variable.shape
    return (int(np.prod(shape[:-1])), int(shape[-1])) if len(shape) > 1 else ()
