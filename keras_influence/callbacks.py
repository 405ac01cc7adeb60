"""InfluenceCallback: influence scores as training goes on."""

import pathlib

import keras

from keras_influence import api
from keras_influence.solvers.base import check_number


class InfluenceCallback(keras.callbacks.Callback):
    """Compute influence scores when `fit` ends, and every few epochs if asked.

    Training is left untouched: weights, metrics, optimizer and random state
    are as without the callback.

    Args:
        test: examples to explain, as in `influence`.
        train: the training data in a fixed order, as in `influence`.
        every: also compute after each `every`-th epoch. None: only at the end.
        folder: if given, scores are also written there, as `epoch_0005.npz`.
        **options: passed to `keras_influence.influence`.

    Attributes:
        history: dict from the number of finished epochs to `InfluenceScores`.
        scores: the newest `InfluenceScores`, or None.
    """

    def __init__(self, test, train, every=None, folder=None, **options):
        super().__init__()
        check_number("every", every, low=1, integer=True, optional=True)
        self._test = test
        self._train = train
        self._every = every
        self._folder = None if folder is None else pathlib.Path(folder)
        self._options = options
        self._epochs = 0
        self.history = {}

    @property
    def scores(self):
        return self.history[max(self.history)] if self.history else None

    def on_train_begin(self, logs=None):
        self._epochs = 0
        self.history = {}

    def on_epoch_end(self, epoch, logs=None):
        self._epochs = epoch + 1
        if self._every and self._epochs % self._every == 0:
            self._compute()

    def on_train_end(self, logs=None):
        if self._epochs not in self.history:
            self._compute()

    def _compute(self):
        scores = api.influence(self.model, self._test, self._train, **self._options)
        self.history[self._epochs] = scores
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            scores.save(self._folder / f"epoch_{self._epochs:04d}.npz")
