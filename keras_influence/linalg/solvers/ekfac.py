"""EK-FAC: an inverse built from Kronecker factors of each layer (Grosse et al. 2023)."""

import numpy as np

from keras_influence.errors import SolverError
from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.damped import Damped
from keras_influence.linalg.operators.layered import kronecker_blocks
from keras_influence.linalg.operators.restricted import Restricted
from keras_influence.linalg.solvers.base import Answer, Problem, Solver
from keras_influence.linalg.solvers.cg import CG
from keras_influence.linalg.spectrum import trace_samples
from keras_influence.validate import check_number

# Up to this many parameters outside all covered layers, their block is written out.
_DENSE_REST = 1500


class EKFAC(Solver):
    """Eigenvalue-corrected Kronecker factors of each layer's Gauss-Newton block.

    Made once in two passes over the data a pseudo-gradient; each right-hand side is then free
    of data. An approximation that no budget improves: curvature between layers is left out, and
    within a layer all but the diagonal in a Kronecker basis. The residual says how far the
    answer is from (H + λI)⁻¹ v, and is not judged. `CG(preconditioner=EKFAC())` and `ASTRA`
    go from here to the exact answer.

    Covered: Dense, EinsumDense (so the projections of attention layers), Embedding, and
    Conv1D, Conv2D, Conv3D without groups. All other parameters (normalisation, recurrent,
    depthwise and transposed convolutions, custom layers, layers with LoRA) are solved for
    exactly as one block of their own, by a dense factorisation or by CG.

    Args:
        pseudo_gradients: how many for each training example: random directions u of the
            outputs with E[u uᵀ] = ∂²ℓ/∂z²: what sampling labels from the model does for a
            cross-entropy, for any convex loss.
        seed: of these.
    """

    tol = None
    preconditions = True
    approximates = "gauss_newton"
    advice = "Raise `damping`, or use CG(preconditioner=EKFAC())."

    def __init__(self, pseudo_gradients: int = 1, seed: int = 0) -> None:
        check_number("pseudo_gradients", pseudo_gradients, low=1, integer=True)
        check_number("seed", seed, integer=True)
        self.pseudo_gradients = pseudo_gradients
        self.seed = seed

    def factorise(self, curvature: LinearOperator, damping: float) -> Kronecker:
        """The blocks of a `Layered` curvature, with the rest of it.

        Raises:
            ValueError: the curvature is not `Layered`.
            SolverError: the damped blocks are not positive definite.
        """
        blocks = kronecker_blocks(curvature, self.pseudo_gradients, self.seed)
        covered = np.zeros(curvature.size, bool)
        for block in blocks:
            covered[block.positions] = True
        if damping == 0 and any((b.eigenvalues <= 0).any() for b in blocks):
            raise SolverError("EKFAC met a singular block. Set `damping` to a positive number.")
        rest = np.flatnonzero(~covered)
        cholesky, scale = _rest(Damped(Restricted(curvature, rest), damping), self.seed)
        return Kronecker(blocks, rest, cholesky, scale, damping)

    def _solve(self, problem: Problem) -> Answer:
        factor = problem.factor
        x = factor.precondition(problem.rows)
        if factor.rest.size and not factor.cholesky.size:
            block = Damped(Restricted(problem.curvature, factor.rest), factor.damping)
            x[:, factor.rest] = CG(tol=1e-3).solve(block, problem.rows[:, factor.rest]).x
        problem.on_step(1, np.nan)
        details = {
            "layers": [block.name for block in factor.blocks],
            "parameters_outside": int(factor.rest.size),
        }
        if not factor.blocks:
            details["note"] = "no layer is covered: all parameters are solved for as one block"
        return Answer(x, 1, details=details)


def _rest(block: LinearOperator, seed: int) -> tuple[Array, float]:
    """The Cholesky factor of a damped block, empty if it is large, and its mean eigenvalue."""
    nothing = np.zeros((0, 0))
    if not block.size:
        return nothing, 1.0
    if block.size > _DENSE_REST:
        return nothing, float(trace_samples(block, 4, seed).mean() / block.size)
    matrix = block.to_dense()
    try:
        return np.linalg.cholesky(matrix), float(np.trace(matrix) / block.size)
    except np.linalg.LinAlgError as error:
        raise SolverError(
            "EKFAC needs a positive definite block for the parameters that it does not cover: "
            "raise `damping`, or use curvature='gauss_newton'."
        ) from error
