"""The spectrum of the curvature: what damping has to outweigh, and how hard a solve will be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.engine.problem import Problem
from keras_influence.errors import ConvergenceWarning, warn
from keras_influence.linalg.operators import Damped, LinearOperator
from keras_influence.linalg.spectrum import eigenpairs, trace_samples
from keras_influence.questions.plans import damping_for
from keras_influence.questions.settings import SpectrumArguments, SpectrumSettings, takes
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

_WHICH = ("LA", "SA", "LM", "BE")


@dataclasses.dataclass(frozen=True)
class Trace:
    """A stochastic estimate of a trace.

    Attributes:
        value: the estimate, tr(H + λI).
        error: its standard error.
        mean_eigenvalue: `value` divided by the number of parameters.
    """

    value: float
    error: float
    mean_eigenvalue: float


@takes(SpectrumSettings)
def hessian_eigenvalues(
    model: Any,
    train: Any,
    k: int = 6,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    **settings: Unpack[SpectrumArguments],
) -> np.ndarray:
    """Extreme eigenvalues of the curvature of the training objective, by SciPy's `eigsh`.

    Args:
        model, train: as in `hvp`.
        k: how many eigenvalues, at most as many as there are parameters.
        which: "LA" largest, "SA" smallest (most negative), "LM" largest in magnitude,
            "BE" half from each end.
        tol: relative accuracy.
        **settings: as in `hvp`, and `verbose`.

    Returns:
        (k,) eigenvalues in ascending order, those that converged if not all did, with a
        `ConvergenceWarning`.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    check_number("k", k, low=1, integer=True)
    check_number("tol", tol)
    if not isinstance(which, str) or which not in _WHICH:
        raise ValueError(f"`which` should be one of {_WHICH}. Received: which={which!r}")
    problem, operator = _system(model, train, SpectrumSettings.of(settings))
    if k > operator.size:
        raise ValueError(f"`k` should be at most the {operator.size} parameters. Received: k={k}")
    step = problem.progress.stage(f"{k} eigenvalues of {operator.size}")
    values, _ = eigenpairs(operator, k, which, tol, on_step=step)
    step.close()
    if len(values) < k:
        warn(
            f"Only {len(values)} of {k} eigenvalues converged: raise `tol` or lower `k`.",
            ConvergenceWarning,
        )
    return values


@takes(SpectrumSettings)
def hessian_trace(
    model: Any,
    train: Any,
    *,
    samples: int = 30,
    seed: int = 0,
    **settings: Unpack[SpectrumArguments],
) -> Trace:
    """The trace of the curvature by Hutchinson's estimator: the mean of vᵀ(H + λI)v.

    Args:
        model, train: as in `hvp`.
        samples: random vectors v of signs ±1; they share one pass over the data.
        seed: of the vectors.
        **settings: as in `hvp`, and `verbose`.

    Returns:
        A `Trace` with the estimate and its standard error.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    check_number("samples", samples, low=2, integer=True)
    check_number("seed", seed, integer=True)
    _, operator = _system(model, train, SpectrumSettings.of(settings))
    values = trace_samples(operator, samples, seed)
    error = values.std(ddof=1) / np.sqrt(samples)
    return Trace(float(values.mean()), float(error), float(values.mean() / operator.size))


def _system(model: Any, train: Any, settings: SpectrumSettings) -> tuple[Problem, LinearOperator]:
    """The `Problem` and its damped curvature."""
    problem = settings.problem(model, train)
    damping, _ = damping_for(problem, settings)
    return problem, Damped(problem.curvature(settings.curvature), damping)
