"""Damping, in the one place where it is defined."""

from keras_influence.linalg.operators.base import LinearOperator


class Damped(LinearOperator):
    """A + λI for an operator A and `damping` λ.

    Args:
        operator: the `LinearOperator` A.
        damping: λ, a number >= 0 in the units of A's eigenvalues.
    """

    def __init__(self, operator, damping):
        self.operator = operator
        self.damping = float(damping)
        self.size = operator.size
        self.dtype = operator.dtype
        self.share = operator.share

    def matmat(self, columns):
        product = self.operator.matmat(columns)
        return product + self.damping * columns if self.damping else product

    def samples(self, batch_size, seed):
        for sample in self.operator.samples(batch_size, seed):
            yield Damped(sample, self.damping)

    def kronecker_blocks(self, num_samples, seed):
        return self.operator.kronecker_blocks(num_samples, seed)
