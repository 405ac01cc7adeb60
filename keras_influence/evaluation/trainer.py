"""A copy of a model with its training data: what all ways of training it share."""

import numpy as np

from keras_influence.engine.loss import checks
from keras_influence.engine.problem import Problem


class Trainer:
    """A copy of a model, its training data, and what is common to both ways of training.

    Attributes:
        model: the copy.
        session: the `Problem` of the copy and the training data.
    """

    def __init__(self, model, train, batch_size):
        self.model = model
        self.session = Problem(model, train, batch_size=batch_size)
        self.n = self.session.train.n

    def read(self, test, target=None):
        """Test data as batches, checked against the model, its loss and `target`."""
        test = self.session.read(test, "test")
        if target is not None:
            checks.check_target(target, self.session.objective, test, self.session.facts.own())
        return test

    def outputs(self, test, target=None):
        """The loss of each test example, or `target` of it, (n_test,) float64, as the copy is."""
        objective = self.session.objective
        if target is not None:
            parts = [objective.eager_targets(batch, target) for batch in test]
        else:
            return self.session.losses(test)
        return np.concatenate([np.ravel(part).astype(np.float64) for part in parts])
