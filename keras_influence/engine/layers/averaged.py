"""Kronecker factors that are averaged over moments of training (Bae et al. 2024, section 3.3)."""

from keras_influence.engine.layers.kronecker import Statistics
from keras_influence.engine.passes.sums import added


class AveragedStatistics(Statistics):
    """`Statistics` whose second moments are means over several states of the weights.

    Args:
        moments: pairs of a share and a function that gives a context in which the model has the
            weights of that moment. The shares add up to 1.
        ground, batches, seed, progress: as of `Statistics`.
    """

    def __init__(self, moments, ground, batches, seed, progress):
        super().__init__(ground, batches, seed, progress)
        self._moments = moments

    def _sum(self, statistic, pseudo_gradients, title, blocks=None):
        """The mean over the moments of the sums there."""
        return added(
            self._share(share, standing, statistic, pseudo_gradients, title, blocks)
            for share, standing in self._moments
        )

    def _share(self, share, standing, *about):
        with standing():
            found = super()._sum(*about)
        return [[share * array for array in arrays] for arrays in found]
