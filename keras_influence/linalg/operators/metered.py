"""Counting what a solve costs."""

from keras_influence.linalg.operators.base import LinearOperator


class Metered(LinearOperator):
    """An operator that counts its products, in passes over the full data.

    A product with several columns is one pass; with a minibatch estimate it is that
    estimate's `share` of one.

    Attributes:
        passes: passes so far.
    """

    def __init__(self, operator):
        self._operator = operator
        self.size, self.dtype = operator.size, operator.dtype
        self.damping = operator.damping
        self.passes = 0.0

    def matmat(self, columns):
        self.passes += self._operator.share
        return self._operator.matmat(columns)

    def kronecker_blocks(self, num_samples, seed):
        self.passes += 2 * num_samples
        return self._operator.kronecker_blocks(num_samples, seed)

    def samples(self, batch_size, seed):
        for sample in self._operator.samples(batch_size, seed):
            yield _MeteredSample(self, sample)


class _MeteredSample(LinearOperator):
    def __init__(self, meter, sample):
        self._meter, self._sample = meter, sample
        self.size, self.dtype = sample.size, sample.dtype
        self.damping, self.share = sample.damping, sample.share

    def matmat(self, columns):
        self._meter.passes += self.share
        return self._sample.matmat(columns)
