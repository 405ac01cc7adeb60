"""Solvers of A X = V for symmetric A: one file each, and a table of their names."""

from keras_influence.solvers.base import Solution, Solver
from keras_influence.solvers.cg import CG
from keras_influence.solvers.direct import Direct
from keras_influence.solvers.lissa import LiSSA
from keras_influence.solvers.minres import MINRES
from keras_influence.solvers.ncg import NCG
from keras_influence.solvers.nystrom import Nystrom

SOLVERS = {
    "cg": CG,
    "direct": Direct,
    "lissa": LiSSA,
    "minres": MINRES,
    "ncg": NCG,
    "nystrom": Nystrom,
}

# Up to this many parameters the dense matrix costs less than an iterative solve.
_DIRECT_SIZE = 1000

__all__ = [
    "CG",
    "Direct",
    "LiSSA",
    "MINRES",
    "NCG",
    "Nystrom",
    "SOLVERS",
    "Solution",
    "Solver",
    "choose",
    "get",
]


def get(identifier):
    """Turn a name, a config or a solver into a solver, as `keras.optimizers.get` does.

    Args:
        identifier: a name in `SOLVERS`; a dict
            `{"class_name": ..., "config": {...}}`; or a `Solver`.

    Raises:
        ValueError, TypeError: it is none of these.
    """
    if isinstance(identifier, Solver):
        return identifier
    if isinstance(identifier, dict):
        return _from_config(identifier)
    if isinstance(identifier, str) and identifier.lower() in SOLVERS:
        return SOLVERS[identifier.lower()]()
    expected = f"`method` should be one of {sorted(SOLVERS)}, a solver such as CG(), or its config"
    if isinstance(identifier, str):
        raise ValueError(f"{expected}. Received: method={identifier!r}")
    raise TypeError(f"{expected}. Received: method={identifier!r}")


def _from_config(config):
    name = config.get("class_name")
    if not isinstance(name, str) or name.lower() not in SOLVERS:
        raise ValueError(
            f"`method`, as a dict, should have a class_name among {sorted(SOLVERS)}. "
            f"Received: method={config}"
        )
    options = config.get("config", {})
    try:
        return SOLVERS[name.lower()](**options)
    except TypeError as error:
        raise TypeError(f"`method` has a config that {name} cannot take: {error}") from error


def choose(size):
    """What `method="auto"` means for `size` parameters: dense when small, else CG."""
    return Direct() if size <= _DIRECT_SIZE else CG()
