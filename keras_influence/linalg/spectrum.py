"""Extreme eigenpairs and the trace of an operator, from its products alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.operators.base import LinearOperator


def eigenpairs(
    operator: LinearOperator,
    k: int,
    which: str,
    tol: float,
    seed: int = 0,
    on_step: Callable[[int], Any] = lambda count: None,
) -> tuple[Array, Array]:
    """`k` eigenvalues and eigenvectors by SciPy's `eigsh`, or all of them densely if k >= p.

    Args:
        operator: a `LinearOperator` of size p.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        tol: relative accuracy of the eigenvalues.
        seed: of the start vector, so that the same call gives the same bits.
        on_step: called with the number of products so far.

    Returns:
        `(values, vectors)`, ascending, vectors as (k, p) rows; fewer than k if not all
        converged.
    """
    if k >= operator.size:
        values, columns = scipy.linalg.eigh(operator.written_out()[0])
        return values, columns.T
    symmetric = _counted(operator, on_step)
    start = np.random.default_rng(seed).standard_normal(operator.size)
    try:
        values, columns = scipy.sparse.linalg.eigsh(symmetric, k=k, which=which, tol=tol, v0=start)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        order = np.argsort(error.eigenvalues)
        values, columns = error.eigenvalues[order], error.eigenvectors[:, order]
    return values, columns.T


def _counted(
    operator: LinearOperator, on_step: Callable[[int], Any]
) -> scipy.sparse.linalg.LinearOperator:
    """The operator for ARPACK, which works in float64 whatever the products are made in."""
    calls = 0

    def product(v: Array) -> Array:
        nonlocal calls
        calls += 1
        on_step(calls)
        return operator.matvec(np.ravel(v).astype(operator.dtype)).astype(np.float64)

    return scipy.sparse.linalg.LinearOperator(
        (operator.size,) * 2, matvec=product, dtype=np.float64
    )


def trace_samples(operator: LinearOperator, count: int, seed: int) -> Array:
    """Values of vᵀ A v for `count` random vectors v of signs ±1.

    Their mean is tr A (Hutchinson).
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (operator.size, count)).T
    image = operator.matmat(np.ascontiguousarray(signs, operator.dtype))
    return np.einsum("ij,ij->i", signs, image.astype(np.float64))
