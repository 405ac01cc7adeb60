"""The interface that solvers see."""

import numpy as np
import scipy.sparse.linalg


class LinearOperator:
    """A symmetric p × p matrix known by its products.

    Subclasses set `size` (p) and `dtype`, and implement `matmat`.

    Attributes:
        share: what a product costs, as a fraction of one pass over the full data.
        damping: the multiple of the identity that is known to be in the matrix.
    """

    size: int
    dtype: np.dtype
    share = 1.0
    damping = 0.0

    def matmat(self, columns):
        """The matrix times a (p, k) array, as a (p, k) array."""
        raise NotImplementedError

    def matvec(self, vector):
        """The matrix times a (p,) array."""
        return self.matmat(np.asarray(vector)[:, None])[:, 0]

    def samples(self, batch_size, seed):
        """An endless iterator of unbiased, cheap estimates of this operator.

        The default is the operator itself, without noise.

        Args:
            batch_size: number of examples that one estimate sees.
            seed: integer; the same seed gives the same estimates.
        """
        while True:
            yield self

    def to_dense(self):
        """The (p, p) float64 matrix, symmetrised."""
        matrix = np.asarray(self.matmat(np.eye(self.size, dtype=self.dtype)), np.float64)
        return (matrix + matrix.T) / 2

    def as_scipy(self):
        """This operator as a `scipy.sparse.linalg.LinearOperator`, for SciPy's solvers."""
        return scipy.sparse.linalg.LinearOperator(
            shape=(self.size, self.size),
            dtype=self.dtype,
            matvec=lambda v: self.matvec(np.ravel(v)),
            rmatvec=lambda v: self.matvec(np.ravel(v)),
            matmat=self.matmat,
            rmatmat=self.matmat,
        )
