"""EK-FAC: an inverse built from Kronecker factors of each layer (Grosse et al. 2023)."""

import numpy as np

from keras_influence.errors import SolverError
from keras_influence.linalg.factors.blocks import AnyBlock, Channels
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.layered import layered
from keras_influence.linalg.operators.restricted import Restricted
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.problem import Answer, Problem
from keras_influence.validate import check_number

# Up to this many parameters of which only the diagonal is known, their block is written out.
_DENSE_REST = 300


class EKFAC(Solver):
    """Eigenvalue-corrected Kronecker factors of each layer's Gauss-Newton block.

    Made once in two passes over the data a pseudo-gradient; each right-hand side is then free
    of data. An approximation that no budget improves: curvature between layers is left out, and
    within a layer all but the diagonal in a Kronecker basis. The residual says how far the
    answer is from (H + λI)⁻¹ v, and is not judged. Of many right-hand
    sides it is measured for 16 in each block, of more than two million parameters for fewer, and the others have
    the largest of these: products for all would cost more than the scores.
    `CG` and `ASTRA` go from here to the exact answer.

    Kronecker factors: Dense, EinsumDense (so the projections of attention layers), Embedding,
    Conv1D, Conv2D, Conv3D without groups, and their transposes; SimpleRNN, LSTM and GRU, also in
    Bidirectional, and ConvLSTM, whose inputs and states have one each; ReversibleEmbedding, whose
    rows and logits have one together. Depthwise and grouped convolutions and the scale and offset of
    normalisations have an exact block for each channel. Of all other parameters (custom layers and
    cells, GRU(reset_after=False), layers with LoRA) the diagonal is taken, or the whole of their
    block where there are few.

    Args:
        pseudo_gradients: how many for each training example: random directions u of the
            outputs with E[u uᵀ] = ∂²ℓ/∂z²: what sampling labels from the model does for a
            cross-entropy, for any convex loss.
        seed: of these.
    """

    tol = None
    in_double = False
    row_bytes = 20
    preconditions = True
    approximates = "gauss_newton"
    advice = "Raise `damping`, or use CG(preconditioner=EKFAC())."

    def __init__(self, pseudo_gradients: int = 1, seed: int = 0) -> None:
        check_number("pseudo_gradients", pseudo_gradients, low=1, integer=True)
        check_number("seed", seed, integer=True)
        self.pseudo_gradients = pseudo_gradients
        self.seed = seed

    def factorise(self, curvature: LinearOperator, damping: float) -> Kronecker:
        """The blocks of a curvature whose layers are known.

        Raises:
            ValueError: they are not.
            SolverError: the damped blocks are not positive definite.
        """
        found = layered(curvature).kronecker(self.pseudo_gradients, self.seed)
        curvature.spend(2 * self.pseudo_gradients)
        blocks = tuple(_written_out(block, curvature, damping) for block in found)
        factor = Kronecker(blocks, damping)
        if damping == 0 and factor.singular:
            raise SolverError("EKFAC met a singular block. Set `damping` to a positive number.")
        return factor.astype(np.result_type(curvature.dtype, np.float32))

    def _solve(self, problem: Problem) -> Answer:
        factor = problem.factor
        x = factor.precondition(problem.rows)
        problem.on_step(1, np.nan)
        outside = [b for b in factor.blocks if b.outside]
        details = {
            "layers": [b.name for b in factor.blocks if not b.outside],
            "parameters_outside": sum(b.positions.size for b in outside),
        }
        if not details["layers"]:
            details["note"] = "no layer is covered: all parameters are taken as one block"
        return Answer(x, 1, details=details)


def _written_out(block: AnyBlock, curvature: LinearOperator, damping: float) -> AnyBlock:
    """A block of few weights outside all layers with all that couples them, others as they are."""
    if not block.outside or block.positions.size > _DENSE_REST:
        return block
    positions = block.positions.array.reshape(1, -1)
    values, vectors = np.linalg.eigh(Restricted(curvature, positions[0]).to_dense())
    if values[0] + damping <= 0:
        raise SolverError(
            "EKFAC needs a positive definite block for the parameters that it does not cover: "
            "raise `damping`, or use curvature='gauss_newton'."
        )
    whole = Positions.of(positions), vectors[None], values[None]
    return Channels(block.name, *whole, by_example=False, outside=True)
