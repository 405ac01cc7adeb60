"""The interface that solvers see."""

import numpy as np
import scipy.sparse.linalg

# Columns of a dense matrix that share a pass over the data: bounds the memory of a pass.
_BLOCK = 512


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

    def kronecker_blocks(self, num_samples, seed):
        """Kronecker-factored approximations of diagonal blocks, a tuple of `kronecker.Block`.

        Only a network's curvature has any. The damping is not in them.

        Args:
            num_samples: pseudo-gradients for each example.
            seed: of the pseudo-gradients.
        """
        return ()

    def to_dense(self):
        """The (p, p) float64 matrix, symmetrised."""
        matrix = np.empty((self.size, self.size))
        for start in range(0, self.size, _BLOCK):
            columns = np.zeros((self.size, min(_BLOCK, self.size - start)), self.dtype)
            np.fill_diagonal(columns[start:], 1)
            matrix[:, start : start + _BLOCK] = self.matmat(columns)
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
