"""Two ways to train a copy of a model on part of its data: to the minimum, or as the user does."""

import contextlib

import numpy as np
import tensorflow as tf

from keras_influence.copies import Worker, seeded
from keras_influence.engine.loss import checks
from keras_influence.evaluation.minimiser import Minimiser
from keras_influence.evaluation.trainer import Trainer
from keras_influence.validate import check_number


class Fitter(Trainer):
    """Trains newly initialised copies with a user's function.

    Args:
        model: left as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays.
        fit: a function `fit(model, data)` that trains a freshly initialised model in place;
            `data` is a dict of x, y and, if there are any, sample_weight: `model.fit(**data)`.
        batch_size: for arrays.
    """

    def __init__(self, model, train, fit, batch_size):
        if not callable(fit):
            raise TypeError(
                "`fit` should be a function fit(model, data) that trains `model` in place, with "
                f"`model.fit(**data, ...)` for example. Received: {fit!r}"
            )
        checks.check_model(model)
        if not isinstance(train, tuple):
            raise TypeError(
                "`train` should be a tuple (x, y) or (x, y, sample_weight) of arrays where `fit` "
                f"is given. Received: {type(train).__name__}"
            )
        self._worker, self._fit = Worker(model), fit
        super().__init__(self._worker.model, train, batch_size)
        self._data = tf.nest.map_structure(np.asarray, tuple(t for t in train if t is not None))

    precision = staticmethod(contextlib.nullcontext)

    def base(self, seed=0):
        return self._run(self._data, seed)

    def without(self, left_out, seed=0):
        """Train with weight 0 for these examples."""
        x, y, *weight = self._data
        weight = np.array(weight[0], np.float64) if weight else np.ones(self.n)
        weight[left_out] = 0
        return self._run((x, y, weight), seed)

    def only(self, kept, seed=0):
        """Train on these examples alone."""
        return self._run(tf.nest.map_structure(lambda t: t[kept], self._data), seed)

    def _run(self, data, seed):
        with seeded(seed):
            self._worker.restart()
            self._fit(self.model, dict(zip(("x", "y", "sample_weight"), data)))
        if not all(np.isfinite(v.numpy()).all() for v in self.model.trainable_variables):
            raise ValueError("`fit` left NaN or infinite weights: it diverged.")


def trainer_of(model, train, *, tol, max_iter, batch_size, fit=None, proximal=0.0):
    """A `Minimiser`, or a `Fitter` if there is a `fit`."""
    if fit is None:
        return Minimiser(model, train, tol, max_iter, proximal, batch_size)
    if proximal:
        raise ValueError(
            "`proximal` should be 0 where `fit` is given, which has a loss of its own. "
            f"Received: proximal={proximal}"
        )
    return Fitter(model, train, fit, batch_size)


def check_seeds(seeds):
    """`seeds` as a tuple of integers."""
    try:
        found = tuple(seeds)
    except TypeError as error:
        raise TypeError(f"`seeds` should be a list of integers. Received: {seeds!r}") from error
    if not found:
        raise ValueError("`seeds` should have at least one seed. Received: an empty list")
    for seed in found:
        check_number("seeds", seed, integer=True)
    if len(set(found)) < len(found):
        raise ValueError(f"`seeds` should be different from each other. Received: {seeds!r}")
    return found
