"""Solvers that are made once and make another solver's passes go further."""

import contextlib
from typing import Any, Literal, TypeAlias

from keras_influence.errors import SolverError
from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.solvers.base import Solver
from keras_influence.linalg.solvers.nystrom import Nystrom
from keras_influence.linalg.solvers.two_level import TwoLevel
from keras_influence.linalg.solvers.woodbury import Woodbury

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
        "`preconditioner` should be None, 'auto', 'nystrom', TwoLevel(), Woodbury(), EKFAC() or "
        "Nystrom(). "
        f"Received: preconditioner={preconditioner!r}"
    )


def by_layers(curvature: LinearOperator) -> Solver | None:
    """What preconditions well for what it costs: a `Woodbury` or a `TwoLevel`, or None."""
    network = curvature.network
    if network is None:
        return None
    contributions = network.contributions_worth_it()
    if contributions is not None:
        return Woodbury(contributions.rank)
    return TwoLevel() if network.layers_are_worth_it() else None


def factorise(
    preconditioner: Preconditioner, curvature: LinearOperator, damping: float, rank: int
) -> Any:
    """The factor of a preconditioner for a curvature and λ; None if there is to be none.

    "auto" is `by_layers`, or as "nystrom" where that has none or fails: a `Nystrom` of `rank`;
    and none where that would take much memory, or where the curvature has negative eigenvalues,
    which the damping may yet outweigh, or none at all in some directions, which it does not.
    """
    if isinstance(preconditioner, Solver):
        return preconditioner.factorise(curvature, damping).astype(curvature.dtype)
    if preconditioner is None:
        return None
    ways = [by_layers(curvature)] if preconditioner == "auto" else []
    ways.append(Nystrom(rank=rank) if curvature.size * rank <= _LARGE else None)
    for solver in ways:
        with contextlib.suppress(SolverError):
            if solver is not None:
                return solver.factorise(curvature, damping).astype(curvature.dtype)
    return None
