"""A copy of a model with its training data, and training it as its user does."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.copies import CopyError, Worker, seeded, shortened
from keras_influence.engine.kernels.targets import check_target
from keras_influence.engine.kernels.whole_set import WholeSet
from keras_influence.engine.loss import checks
from keras_influence.engine.loss.compiled import CompiledLoss
from keras_influence.engine.problem import Problem
from keras_influence.engine.selection import select
from keras_influence.errors import ObjectiveWarning, warn
from keras_influence.questions.blocks import read_test

# How far a copy's outputs and loss may be from its model's, relatively, by the bytes of a weight.
_TOLERANCES = {2: 0.1, 4: 1e-3, 8: 1e-3}


class Trainer:
    """A copy of a model, its training data, and what is common to both ways of training.

    Args:
        model: the original, left as it is.
        copy: a copy with the same weights.
        train: the training data.
        settings: `Settings`; of these the data's and θ's count.

    Attributes:
        model: the copy.
        problem: the `Problem` of the copy and the training data.
        variables: those of the copy that are θ; None for all trainable ones.
        n: number of training examples.

    Raises:
        CopyError: the copy does not compute what the model does.
    """

    def __init__(self, model, copy, train, settings):
        self.model = copy
        self.variables = self._variables(model, settings)
        try:
            self.problem = _problem(copy, train, settings, self.variables)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            # Bad data fails again, with its own message.
            _problem(model, train, settings, _chosen(model, settings))
            raise CopyError(
                f"the copy cannot take `train`, which the model takes: {shortened(error)}"
            ) from error
        self.n = self.problem.n

    def _variables(self, model, settings):
        """The copies of the weights that are θ; None for all of them."""
        if settings.variables is None:
            return None
        positions = {id(v): i for i, v in enumerate(model.trainable_variables)}
        twins = self.model.trainable_variables
        return [twins[positions[id(v)]] for v in _chosen(model, settings)]

    @property
    def given(self):
        """The variables whose values now, before any training, have a part in its outcome."""
        raise NotImplementedError

    def settings_of_copy(self, settings):
        """The same settings for questions about the copy."""
        return dataclasses.replace(settings, variables=self.variables)

    def check_against(self, model):
        """Raise a `CopyError` unless the copy, as it is, gives what `model` gives."""
        batch = self.problem.train.head(8)
        with self.precision():
            outputs, loss = _computed(self.model, batch)
        dtype = tf.as_dtype(model.variable_dtype)
        cast = tf.nest.map_structure(
            lambda t: tf.cast(t, dtype) if t.dtype.is_floating else t, batch
        )
        expected, expected_loss = _computed(model, cast)
        tolerance = _TOLERANCES.get(dtype.size, 1e-3)
        for found, known in zip(outputs, expected):
            if np.linalg.norm(found - known) > tolerance * np.linalg.norm(known) + 1e-6:
                raise CopyError("the copy has other outputs, though it has the same weights")
        if abs(loss - expected_loss) > tolerance * abs(expected_loss) + 1e-5:
            raise CopyError("the copy has another loss, though it has the same weights")

    def read(self, test, target=None):
        """Test data as batches, checked against the model, its loss and `target`."""
        test = read_test(self.problem, test, target)
        if target is not None and not isinstance(target, WholeSet):
            check_target(target, self.problem.objective, test, self.problem.facts.own())
        return test

    def outputs(self, test, target=None):
        """The loss of each test example, or `target` of it, (n_test,) float64, as the copy is."""
        return self.problem.outputs(test, target)


class Fitter(Trainer):
    """Trains newly initialised copies with a user's function.

    Args:
        model: left as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays.
        fit: a function `fit(model, data)` that trains a freshly initialised model in place;
            `data` is a dict of x, y and, if there are any, sample_weight: `model.fit(**data)`.
        settings: `Settings`. Class weights reach `fit` as sample weights. Weights that
            `variables` leaves out are not trainable, and keep the values that `model` has.
    """

    how = "fit"

    def __init__(self, model, train, fit, settings):
        checks.check_model(model)
        if not isinstance(train, tuple):
            raise TypeError(
                "`train` should be a tuple (x, y) or (x, y, sample_weight) of arrays where `fit` "
                f"is given. Received: {type(train).__name__}"
            )
        if len(train) < 2 or train[1] is None:
            raise ValueError(
                "`train` should have labels where `fit` is given: an example is left out by its weight, "
                "and Keras reads no sample_weight without y. Give y, if only zeros that the loss ignores."
            )
        self._worker, self._fit = Worker(model, _chosen(model, settings)), fit
        super().__init__(model, self._worker.model, train, settings)
        self.check_against(model)
        self._worker.freeze()
        self._data = self._arrays(train, settings.class_weight)

    precision = staticmethod(contextlib.nullcontext)

    @property
    def given(self):
        return self._worker.kept

    def _variables(self, model, settings):
        return None  # The copy will have no other trainable weights.

    def _arrays(self, train, class_weight):
        """x, y and, if there are any weights, those, with the class weights in them."""
        data = tf.nest.map_structure(np.asarray, tuple(t for t in train if t is not None))
        if class_weight is None:
            return data
        weights = [batch[2].numpy() for batch in self.problem.train]
        return (*data[:2], np.concatenate(weights))

    def base(self, seed=0):
        return self._run(self._data, seed)

    def without(self, left_out, seed=0):
        """Train with weight 0 for these examples."""
        if self.problem.facts.adds_by_example:
            warn(
                "`fit` leaves an example out by a weight of zero, which does not reach what layers add "
                "to the loss by `add_loss`: there it still counts. Without `fit` it does not.",
                ObjectiveWarning,
            )
        x, y, *weight = self._data

        def without(of_output):
            kept = np.array(of_output, np.float64)
            kept[left_out] = 0
            return kept

        # Each output of a model may have weights of its own.
        weight = tf.nest.map_structure(without, weight[0] if weight else np.ones(self.n))
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
        moved = self._worker.moved()
        if moved:
            raise ValueError(
                "`fit` should train only the weights that `variables` selects, with "
                f"`layer.trainable` as it finds it, but it changed {', '.join(moved)}."
            )


def _problem(model, train, settings, variables):
    about = {"batch_size": settings.batch_size, "class_weight": settings.class_weight}
    return Problem(model, train, variables=variables, **about)


def _chosen(model, settings):
    """The model's trainable variables that are θ; None for all of them."""
    return None if settings.variables is None else select(model, settings.variables)


def _computed(model, batch):
    """A model's outputs for a batch, flat, and its loss; nothing of the model changes."""
    x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
    values = [(v, v.value) for v in model.trainable_variables]
    with CompiledLoss(model, model.trainable_variables).with_values(values):
        y_pred = _keras.call_model(model, x)
        loss = float(_keras.compute_loss(model, x, y, y_pred, w))
    return [np.ravel(t).astype(np.float64) for t in tf.nest.flatten(y_pred)], loss
