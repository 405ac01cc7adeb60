"""Solvers that are made once and make another solver's passes go further."""

from typing import Any, Literal, TypeAlias

from keras_influence.errors import SolverError
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.layered import Layered
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.nystrom import Nystrom
from keras_influence.linalg.solvers.two_level import TwoLevel

# Numbers in a sketch beyond which it takes too much memory: a gigabyte and more.
_LARGE = 2 * 10**7

Preconditioner: TypeAlias = Solver | Literal["auto", "nystrom"] | None


def check_preconditioner(preconditioner: Preconditioner) -> Preconditioner:
    """Raise a TypeError unless it is None, a known name or a solver whose factor can precondition."""
    named = isinstance(preconditioner, str) and preconditioner in ("auto", "nystrom")
    if preconditioner is None or named:
        return preconditioner
    if isinstance(preconditioner, Solver) and preconditioner.preconditions:
        return preconditioner
    raise TypeError(
        "`preconditioner` should be None, 'auto', 'nystrom', TwoLevel(), EKFAC() or Nystrom(). "
        f"Received: preconditioner={preconditioner!r}"
    )


def factorise(
    preconditioner: Preconditioner, curvature: LinearOperator, damping: float, rank: int
) -> Any:
    """The factor of a preconditioner for a curvature and λ; None if there is to be none.

    "auto" is a `TwoLevel` where the layers are worth it, else "nystrom": a `Nystrom` of `rank`;
    and none where that would take much memory, or where the curvature has negative eigenvalues,
    which the damping may yet outweigh, or none at all in some directions, which it does not.
    """
    if isinstance(preconditioner, Solver):
        return preconditioner.factorise(curvature, damping).astype(curvature.dtype)
    if preconditioner is None:
        return None
    layers = (
        preconditioner == "auto"
        and isinstance(curvature, Layered)
        and curvature.layers_are_worth_it()
    )
    if not layers and curvature.size * rank > _LARGE:
        return None
    solver = TwoLevel() if layers else Nystrom(rank=rank)
    try:
        return solver.factorise(curvature, damping).astype(curvature.dtype)
    except SolverError:
        return None
