"""Extreme eigenpairs and the trace of an operator, from its products alone."""

import numpy as np
import scipy.linalg
import scipy.sparse.linalg


def eigenpairs(operator, k, which, tol, seed=0, on_step=lambda count: None):
    """`k` eigenvalues and eigenvectors by SciPy's `eigsh`, or all of them densely if k >= p.

    Args:
        operator: a `LinearOperator` of size p.
        which: "LA" largest, "SA" smallest, "LM" largest in magnitude, "BE" both ends.
        tol: relative accuracy of the eigenvalues.
        seed: of the start vector, so that the same call gives the same bits.
        on_step: called with the number of products so far.

    Returns:
        `(values, vectors)`, ascending; fewer than k if not all converged.
    """
    if k >= operator.size:
        return scipy.linalg.eigh(operator.to_dense())
    calls = 0

    def product(v):
        nonlocal calls
        calls += 1
        on_step(calls)
        return operator.matvec(np.ravel(v).astype(operator.dtype)).astype(np.float64)

    symmetric = scipy.sparse.linalg.LinearOperator(
        (operator.size,) * 2, matvec=product, dtype=np.float64
    )
    start = np.random.default_rng(seed).standard_normal(operator.size)
    try:
        return scipy.sparse.linalg.eigsh(symmetric, k=k, which=which, tol=tol, v0=start)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        order = np.argsort(error.eigenvalues)
        return error.eigenvalues[order], error.eigenvectors[:, order]


def trace_samples(operator, samples, seed):
    """Values of vᵀ A v for random vectors v of signs ±1; their mean is tr A (Hutchinson)."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (operator.size, samples))
    image = operator.matmat(signs.astype(operator.dtype))
    return np.einsum("ij,ij->j", signs, image.astype(np.float64))
