"""What a network's layers know of the curvature of its loss on all of the training data."""

import functools

import numpy as np

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.layers.averaged import AveragedStatistics
from keras_influence.engine.layers.contributions import contributions
from keras_influence.engine.layers.finite import check_gradients
from keras_influence.engine.layers.kronecker import Statistics
from keras_influence.engine.layers.worth import Worth
from keras_influence.errors import NotFiniteError

_ANEW = 1_000_003


class Network:
    """The layers' part of a curvature; see `linalg.operators.network.Network`.

    What it knows is of the Gauss-Newton matrix, which approximates the Hessian too.

    Args:
        ground: a `Ground`.
        batches: the `Batches` of the training data.
        footprint: what one example takes, `Footprint`.
        progress: as `Progress`, shows what takes long.
        average: as `curvature.Average`, of the curvature itself.

    Attributes:
        n: number of examples.
        worth: what it costs, `Worth`.
    """

    def __init__(self, ground, batches, footprint, progress, average):
        self._ground, self._batches = ground, batches
        self._progress, self._average = progress, average
        self.n = batches.n
        self.worth = Worth(ground.objective, footprint, batches)

    def kronecker(self, pseudo_gradients, seed, moments=None):
        """The blocks without damping; of the mean over moments of training, if there are any.

        Args:
            pseudo_gradients: how many for each example.
            seed: of these.
            moments: as of `AveragedStatistics`.
        """
        kind = Statistics if moments is None else functools.partial(AveragedStatistics, moments)
        try:
            return self._statistics(seed, kind).blocks(pseudo_gradients, self.regulariser(seed))
        except NotFiniteError:
            if moments is None:  # Of others the weights are no longer there.
                self._refuse_bad_examples()
            raise

    def coupling(self, blocks, chosen, draws, seed):
        each = -(-draws // self.n)
        count = min(self.n, -(-draws // each))
        positions = np.random.default_rng(seed).choice(self.n, count, replace=False)
        # Other pseudo-gradients than the blocks are made of.
        statistics = self._statistics(seed + _ANEW)
        about = blocks, chosen, each, np.sort(positions)
        return statistics.coarse(*about, self.regulariser(seed))

    def contributions(self, most, nbytes):
        return contributions(self._ground, self._batches, most, nbytes, self._progress)

    def regulariser(self, seed=0):
        """(p,) diagonal of the Hessian of what is there without any example.

        Exact where it acts on each weight by itself.
        """
        objective, facts = self._ground.objective, self._ground.facts
        parameters = objective.parameters
        if facts.leaves_no_remainder and not _keras.has_regularisers(objective.model()):
            return np.zeros(parameters.size, parameters.dtype.as_numpy_dtype)
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (1, parameters.size))
        one = self._batches.head(1)
        return (signs * self._average(signs, [one], size_of(one), facts.remainder()))[0]

    def layers_are_worth_it(self):
        return self.worth.blocks()

    def contributions_worth_it(self):
        return self.worth.contributions()

    def _statistics(self, seed, kind=Statistics):
        return kind(self._ground, self._batches, seed, self._progress)

    def _refuse_bad_examples(self):
        check_gradients(self._ground.objective, self._batches, self._ground.facts.own())
