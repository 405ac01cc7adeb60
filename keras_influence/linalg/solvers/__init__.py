"""Solvers of A x = v for symmetric A: one file each, and a table of their names."""

from collections.abc import Callable
from typing import Any

from keras_influence.linalg.solvers.arnoldi import Arnoldi
from keras_influence.linalg.solvers.astra import ASTRA
from keras_influence.linalg.solvers.auto import Auto
from keras_influence.linalg.solvers.base import Solution, Solver
from keras_influence.linalg.solvers.cg import CG
from keras_influence.linalg.solvers.direct import Direct
from keras_influence.linalg.solvers.ekfac import EKFAC
from keras_influence.linalg.solvers.lissa import LiSSA
from keras_influence.linalg.solvers.minres import MINRES
from keras_influence.linalg.solvers.ncg import NCG
from keras_influence.linalg.solvers.nystrom import Nystrom
from keras_influence.linalg.solvers.two_level import TwoLevel
from keras_influence.linalg.solvers.woodbury import Woodbury

SOLVERS: dict[str, Callable[..., Solver | Auto]] = {
    "arnoldi": Arnoldi,
    "astra": ASTRA,
    "auto": Auto,
    "cg": CG,
    "direct": Direct,
    "ekfac": EKFAC,
    "lissa": LiSSA,
    "minres": MINRES,
    "ncg": NCG,
    "nystrom": Nystrom,
    "two_level": TwoLevel,
    "woodbury": Woodbury,
}

__all__ = [
    "ASTRA",
    "Arnoldi",
    "Auto",
    "CG",
    "Direct",
    "EKFAC",
    "LiSSA",
    "MINRES",
    "NCG",
    "Nystrom",
    "SOLVERS",
    "Solution",
    "Solver",
    "TwoLevel",
    "Woodbury",
    "get",
]


def _key(name: str) -> str:
    """ "TwoLevel" and "two_level" are the same name."""
    return name.lower().replace("_", "")


_BY_KEY = {_key(name): solver for name, solver in SOLVERS.items()}


def get(identifier: str | dict[str, Any] | Solver | Auto) -> Solver | Auto:
    """Turn a name, a config or a solver into a solver, as `keras.optimizers.get` does.

    Args:
        identifier: a name in `SOLVERS`; a dict
            `{"class_name": ..., "config": {...}}`; or a `Solver`.

    Raises:
        ValueError, TypeError: it is none of these.
    """
    if isinstance(identifier, (Solver, Auto)):
        return identifier
    if isinstance(identifier, dict):
        return _from_config(identifier)
    if isinstance(identifier, str) and _key(identifier) in _BY_KEY:
        return _BY_KEY[_key(identifier)]()
    expected = f"`method` should be one of {sorted(SOLVERS)}, a solver such as CG(), or its config"
    if isinstance(identifier, str):
        raise ValueError(f"{expected}. Received: method={identifier!r}")
    raise TypeError(f"{expected}. Received: method={identifier!r}")


def _from_config(config: dict[str, Any]) -> Solver | Auto:
    name = config.get("class_name")
    if not isinstance(name, str) or _key(name) not in _BY_KEY:
        raise ValueError(
            f"`method`, as a dict, should have a class_name among {sorted(SOLVERS)}. "
            f"Received: method={config}"
        )
    options = {k: _nested(v) for k, v in config.get("config", {}).items()}
    try:
        return _BY_KEY[_key(name)](**options)
    except TypeError as error:
        raise TypeError(f"`method` has a config that {name} cannot take: {error}") from error


def _nested(value: Any) -> Any:
    """An option that is itself the config of a solver becomes that solver."""
    return _from_config(value) if isinstance(value, dict) and "class_name" in value else value
