"""The spectrum of the curvature: what damping has to outweigh, and how hard a solve will be."""

import dataclasses
import warnings

import numpy as np

from keras_influence.errors import ConvergenceWarning
from keras_influence.linalg.spectrum import eigenpairs, trace_samples
from keras_influence.questions.session import CURVATURES, Session
from keras_influence.validate import check_number

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


def hessian_eigenvalues(
    model,
    train,
    k=6,
    *,
    which="LA",
    tol=1e-3,
    damping=0.0,
    curvature="hessian",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """Extreme eigenvalues of the curvature of the training objective, by SciPy's `eigsh`.

    Args:
        model, train, damping, curvature, batch_size, class_weight, variables: as in `hvp`.
        k: how many eigenvalues, fewer than the parameters.
        which: "LA" largest, "SA" smallest (most negative), "LM" largest in magnitude,
            "BE" half from each end.
        tol: relative accuracy.
        verbose: as in `inverse_hvp`.

    Returns:
        (k,) eigenvalues in ascending order, those that converged if not all did, with a
        `ConvergenceWarning`.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    check_number("k", k, low=1, integer=True)
    check_number("tol", tol)
    if which not in _WHICH:
        raise ValueError(f"`which` should be one of {_WHICH}. Received: which={which!r}")
    session = _session(
        model, train, damping, curvature, batch_size, class_weight, variables, verbose
    )
    operator = session.operator(curvature)
    if k >= operator.size:
        raise ValueError(f"`k` should be less than the {operator.size} parameters. Received: k={k}")
    step = session.progress.stage(f"{k} eigenvalues of {operator.size}")
    values, _ = eigenpairs(operator, k, which, tol, on_step=step)
    step.close()
    if len(values) < k:
        warnings.warn(
            f"Only {len(values)} of {k} eigenvalues converged: raise `tol` or lower `k`.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return values


def hessian_trace(
    model,
    train,
    *,
    samples=30,
    seed=0,
    damping=0.0,
    curvature="hessian",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """The trace of the curvature by Hutchinson's estimator: the mean of vᵀ(H + λI)v.

    Args:
        model, train, damping, curvature, batch_size, class_weight, variables: as in `hvp`.
        samples: random vectors v of signs ±1; they share one pass over the data.
        seed: of the vectors.
        verbose: as in `inverse_hvp`.

    Returns:
        A `Trace` with the estimate and its standard error.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    check_number("samples", samples, low=2, integer=True)
    check_number("seed", seed, integer=True)
    session = _session(
        model, train, damping, curvature, batch_size, class_weight, variables, verbose
    )
    operator = session.operator(curvature)
    values = trace_samples(operator, samples, seed)
    error = values.std(ddof=1) / np.sqrt(samples)
    return Trace(float(values.mean()), float(error), float(values.mean() / operator.size))


def _session(model, train, damping, curvature, batch_size, class_weight, variables, verbose):
    return Session(
        model,
        train,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
        curvatures=tuple(CURVATURES),
    )
