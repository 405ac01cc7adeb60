"""Eigenvectors of second moments, which may be large and of low rank."""

import contextlib

import numpy as np
import scipy.linalg

from keras_influence.linalg.arrays import Array, taking_turns

# A side of a matrix with more than this has no eigenbasis: its own axes stand in for it.
LARGEST = 6000
# Smaller matrices have their eigenvectors soon enough; and up to this size so soon that more threads
# would be in the way of TensorFlow's for as long as they save.
_SMALL, _SHORT = 500, 1500
# What is smaller than this part of the largest second moment is rounding in float32.
_NOISE = 1e-6
# Of rows themselves, this part of the longest direction.
_ROUNDING = 1e-6


def eigenvectors(moment: Array) -> Array:
    """Orthonormal eigenvectors as columns; those of eigenvalue zero in any basis."""
    if not moment.size:
        return moment
    if len(moment) == 1:  # SciPy 1.11 gives LAPACK too little room for it.
        return np.ones_like(moment)
    moment = moment + moment.T
    with taking_turns() if len(moment) <= _SHORT else contextlib.nullcontext():
        low = _low_rank(moment)
        if low is not None:
            return low
        # In the precision of the moments: `numpy.linalg.eigh` would take twice the time and
        # memory. Turned, for LAPACK then works in this very array.
        return scipy.linalg.eigh(moment.T, driver="evd", overwrite_a=True, check_finite=False)[1]


def eigenvectors_of_rows(rows: Array) -> Array:
    """Orthonormal eigenvectors of Σ r rᵀ for (m, K) rows, those of its range alone: (K, r), one at least."""
    columns = np.asarray(rows.T, np.result_type(rows, np.float32))
    with taking_turns():
        vectors, lengths, _ = scipy.linalg.svd(columns, full_matrices=False, check_finite=False)
    rank = int((lengths > _ROUNDING * lengths[0]).sum())
    basis: Array = vectors[:, : max(1, rank)].copy()
    return basis


def _low_rank(moment: Array) -> Array | None:
    """The same of a matrix that few rows add up to, by Cholesky with pivots; None of others.

    A wide layer has fewer rows than inputs where examples are few, and its eigenvectors would
    take longer than all the rest.
    """
    size = len(moment)
    if size < _SMALL:
        return None
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (moment,))
    largest = moment.diagonal().max()
    factor, order, rank, _ = pstrf(moment, tol=_NOISE * largest, lower=1)
    if rank > size // 3 or largest <= 0:
        return None
    root = np.empty_like(factor[:, :rank])
    root[order - 1] = np.tril(factor[:, :rank])
    basis, corner = scipy.linalg.qr(root, mode="full")
    basis[:, :rank] = basis[:, :rank] @ np.linalg.svd(corner[:rank])[0]
    return basis
