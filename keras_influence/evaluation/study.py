"""What comparing predicted with actual changes takes: a base, its scores, and retrainings."""

import numpy as np

from keras_influence.progress import Progress
from keras_influence.questions.evidence import name_of
from keras_influence.questions.influence import influence


class Study:
    """A trained base with its test outputs and scores, to leave out examples from.

    Args:
        model, test, train, target: as in `leave_one_out`.
        retraining: `Retraining`.
        settings: `Settings`.

    Attributes:
        n, n_test: numbers of examples.
        base: for L-BFGS, the `Minimum` that is the base, else None.
        how: how retraining is done, in words.
        target: "test loss", or the name of the function.
    """

    def __init__(self, model, test, train, target, retraining, settings):
        self._seeds = retraining.seeds
        self._trainer = retraining.trainer(model, train, settings)
        # With `fit`, scores are about the model as it is; else about the minimum.
        fitted = retraining.fit is not None
        self._scored = model if fitted else self._trainer.model
        self._settings = settings if fitted else self._trainer.settings_of_copy(settings)
        self._function = target
        self._data = test, train
        self.n = self._trainer.n
        self.target = name_of(target)
        self.how = self._trainer.how + (f", {len(self._seeds)} seeds" if fitted else "")
        with self._trainer.precision():
            self._test = self._trainer.read(test, target)
        self.n_test = self._test.n

    def scores(self, scores=None):
        """Train the base, and return the user's scores or `influence`, (n_test, n) float64."""
        if scores is not None:
            check_scores(scores, self.n_test, self.n)
        with self._trainer.precision():
            self._before = {}
            for seed in self._seeds:
                self.base = self._trainer.base(seed)
                self._before[seed] = self._trainer.outputs(self._test, self._function)
            if scores is None:
                options = as_arguments(self._settings)
                scores = influence(self._scored, *self._data, target=self._function, **options)
        return np.asarray(scores, np.float64)

    def changes(self, groups):
        """Leave each group out by itself, and retrain.

        Returns:
            `(changes, minima)`: the changes of the outputs, mean over the seeds,
            (n_groups, n_test), and what the trainer said of each training.
        """
        changes, minima = [], []
        shown = Progress(self._settings.verbose).over(
            groups, f"Retrain {len(groups)} times", len(groups)
        )
        with self._trainer.precision():
            for group in shown:
                total = 0
                for seed, before in self._before.items():
                    minima.append(self._trainer.without(group, seed))
                    total += self._trainer.outputs(self._test, self._function) - before
                changes.append(total / len(self._before))
        return np.array(changes), minima


def as_arguments(settings):
    """`Settings` as the keyword arguments of `influence`."""
    return {name: getattr(settings, name) for name in settings.arguments()}


def check_scores(scores, n_test, n_train):
    """Raise unless `scores` is a finite (n_test, n_train) matrix."""
    shape = np.shape(scores)
    if shape != (n_test, n_train):
        raise ValueError(
            f"`scores` should have one row per test example and one column per training example, "
            f"({n_test}, {n_train}). Received: shape {shape}"
        )
    if not np.isfinite(np.asarray(scores)).all():
        raise ValueError("`scores` should be finite, but it has NaN or infinite entries.")
