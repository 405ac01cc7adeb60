"""Curvature of the full training objective, as operators over batches of data."""

import numpy as np

from keras_influence.operators.base import LinearOperator


class _Curvature(LinearOperator):
    """Σ_B (b_B / n) C_B over the batches B of a data set.

    Args:
        objective: an `Objective`.
        batches: an iterable of batches, `n` examples in all.
        n: number of examples.
    """

    def __init__(self, objective, batches, n):
        self._objective = objective
        self._batches = batches
        self._n = n
        self.size = objective.parameters.size
        self.dtype = np.dtype(objective.parameters.dtype.as_numpy_dtype)

    def _kernel(self, batch, rows):
        """b_B · C_B v for each row v."""
        raise NotImplementedError

    def matmat(self, columns):
        rows = np.ascontiguousarray(np.asarray(columns, self.dtype).T)
        total = np.zeros(rows.shape, np.float64)
        for batch in self._batches:
            total += self._kernel(batch, rows).numpy()
        return (total.T / self._n).astype(self.dtype)

    def samples(self, batch_size, seed):
        if batch_size >= self._n:
            yield from super().samples(batch_size, seed)
        for batch in self._batches.sampler(batch_size, seed):
            yield type(self)(self._objective, [batch], batch_size)


class Hessian(_Curvature):
    """∇²L(θ), regularisers included. Indefinite away from a minimum."""

    def _kernel(self, batch, rows):
        return self._objective.hvp(batch, rows)


class GaussNewton(_Curvature):
    """Jᵀ (∇²_z ℓ) J plus the regulariser's Hessian, z the model's outputs or logits.

    Positive semi-definite for losses that are convex in z, and equal to the
    Hessian for generalised linear models (Schraudolph 2002; Martens 2020, §8).
    """

    def _kernel(self, batch, rows):
        return self._objective.gauss_newton(batch, rows)
