"""Solvers that are made once and make another solver's passes go further."""

from keras_influence.errors import SolverError
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.nystrom import Nystrom


def check_preconditioner(preconditioner):
    """Raise a TypeError unless it is None, "auto" or a solver whose factor can precondition."""
    if preconditioner is None or isinstance(preconditioner, str) and preconditioner == "auto":
        return preconditioner
    if isinstance(preconditioner, Solver) and preconditioner.preconditions:
        return preconditioner
    raise TypeError(
        "`preconditioner` should be None, 'auto', Nystrom() or EKFAC(). "
        f"Received: preconditioner={preconditioner!r}"
    )


def factorise(preconditioner, operator, rank):
    """The factor of a preconditioner for an operator; None if there is to be none.

    "auto" is a `Nystrom` of `rank`, and none where the curvature has negative eigenvalues,
    which the damping may yet outweigh.
    """
    if isinstance(preconditioner, Solver):
        return preconditioner.factorise(operator)
    if preconditioner is None:
        return None
    try:
        return Nystrom(rank=rank).factorise(operator)
    except SolverError:
        return None
