"""Two ways to train a copy of a model on part of its data: to the minimum, or as the user does."""

import contextlib
import dataclasses
import warnings

import numpy as np
import scipy.optimize
import tensorflow as tf

from keras_influence import checks
from keras_influence.errors import ConvergenceWarning
from keras_influence.evaluation.copies import (
    Worker,
    double,
    double_precision,
    same,
    seeded,
)
from keras_influence.loss import batch_size as size_of
from keras_influence.session import Session
from keras_influence.solvers.base import check_number

# Losses and gradients take little memory, so batches may be larger than elsewhere.
_BATCH_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        theta: (p,) float64.
        before, after: norm of the gradient at the start and at the end.
        iterations: L-BFGS iterations.
    """

    theta: np.ndarray
    before: float
    after: float
    iterations: int


class Trainer:
    """A copy of a model, its training data, and what is common to both ways of training.

    Attributes:
        model: the copy.
        session: the `Session` of the copy and the training data.
    """

    def __init__(self, model, train, batch_size):
        self.model = model
        settings = {"damping": 0.0, "curvature": "hessian", "batch_size": batch_size}
        self.session = Session(model, train, **settings)
        self.n = self.session.train.n

    def read(self, test, target=None):
        """Test data as batches, checked against the model, its loss and `target`."""
        test = self.session.read(test, "test")
        if target is not None:
            checks.check_target(target, self.session.objective, test)
        return test

    def outputs(self, test, target=None):
        """The loss of each test example, or `target` of it, (n_test,) float64, as the copy is."""
        objective = self.session.objective
        if target is not None:
            parts = [objective.eager_targets(batch, target) for batch in test]
        else:
            parts = [
                objective.eager_losses(b) / (size_of(b) if objective.sums else 1) for b in test
            ]
        return np.concatenate([np.ravel(part).astype(np.float64) for part in parts])


class Minimiser(Trainer):
    """Trains by L-BFGS to a minimum of the compiled loss, in float64, from given weights.

    Args:
        model: left as it is.
        train: the training data.
        tol: stop when the gradient is this small, relative to what one example contributes
            to it (for the base) or to its norm at the start (for a retraining).
        max_iter: L-BFGS iterations.
        proximal: ρ; ½ρ‖θ - θ₀‖² is added to the loss, with θ₀ the weights of `model`.
        batch_size: for arrays.
    """

    def __init__(self, model, train, tol, max_iter, proximal, batch_size):
        check_number("tol", tol, strict=True)
        check_number("max_iter", max_iter, low=1, integer=True)
        check_number("proximal", proximal)
        checks.check_model(model)
        self._tol, self._max_iter, self._proximal = tol, max_iter, float(proximal)
        if batch_size is None and isinstance(train, tuple):
            batch_size = _BATCH_SIZE
        with double_precision():
            try:
                super().__init__(double(model), train, batch_size)
            except (ValueError, TypeError, tf.errors.OpError):
                # A layer that insists on float32; bad data fails again, with its own message.
                super().__init__(same(model), train, batch_size)
        self.start = self._centre = self._values()

    precision = staticmethod(double_precision)

    def base(self, seed=None):
        """Go to the minimum for all training data, from where the model was; a `Minimum`."""
        goal = self._tol * self.one_example()
        minimum = self._minimise(self.start, self.session.train, (), goal)
        self.start = minimum.theta
        return minimum

    def one_example(self):
        """Norm of what one example contributes to ∇L: the median of some."""
        gradients = self.session.objective.example_gradients(self.session.train.head(64))
        return np.median(np.linalg.norm(gradients.numpy(), axis=1)) / self.n

    def without(self, left_out, seed=None):
        """Give these examples weight 0, n unchanged, and go to the minimum from the base."""
        group = self.session.train.subset(left_out)
        return self._minimise(self.start, self.session.train, group)

    def only(self, kept, seed=None):
        """Train on these examples alone, from the base."""
        return self._minimise(self.start, self.session.train.subset(kept), ())

    def _minimise(self, start, batches, left_out, goal=None):
        last = {}

        def evaluate(theta):
            value, gradient = self.value_and_gradient(theta, batches, left_out)
            last["norm"] = np.linalg.norm(gradient)
            return value, gradient

        evaluate(start)
        before = last["norm"]
        goal = self._tol * before if goal is None else goal

        def callback(intermediate_result):
            if last["norm"] <= goal:
                raise StopIteration

        # The callback sees only accepted points, and comes too late for the first.
        if before > goal:
            options = {"maxiter": self._max_iter, "maxfun": 10 * self._max_iter, "maxcor": 20}
            # At the kinks of a ReLU the gradient does not vanish: end where the loss stands still.
            options |= {"gtol": 0.0, "ftol": 1e-15}
            found = scipy.optimize.minimize(
                evaluate, start, jac=True, method="L-BFGS-B", callback=callback, options=options
            )
            start, iterations = found.x, found.nit
        else:
            iterations = 0
        evaluate(start)
        if last["norm"] > 10 * goal:
            warnings.warn(
                f"L-BFGS stopped after {iterations} iterations with a gradient of "
                f"{last['norm']:.1e} where {goal:.1e} was wanted (it was {before:.1e}): the minimum "
                "is not exact. Raise `max_iter` or `tol`, or, for a network with kinks (ReLU), "
                "take a smooth one.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return Minimum(start, float(before), float(last["norm"]), int(iterations))

    def value_and_gradient(self, theta, batches, left_out):
        """L + ½ρ‖θ - θ₀‖² and its gradient at θ, without the examples of `left_out`.

        The copy is left at θ.
        """
        objective, n = self.session.objective, batches.n
        self.assign(theta)
        total = np.zeros(1 + len(theta))
        for batch in batches:
            total += objective.value_and_gradient(batch, objective.weight_in(batch, n)).numpy()
        for batch in left_out:
            weight = objective.weight_in(batch, n)
            total -= objective.value_and_gradient(batch, weight).numpy()
            total += objective.value_and_gradient(batch, 0.0).numpy()
        away = theta - self._centre
        value = total[0] / n + self._proximal * (away @ away) / 2
        return value, total[1:] / n + self._proximal * away

    def _values(self):
        variables = self.session.objective.parameters.variables
        return np.concatenate([v.numpy().ravel() for v in variables]).astype(np.float64)

    def assign(self, theta):
        parameters = self.session.objective.parameters
        for variable, part in zip(parameters.variables, parameters.split(theta)):
            variable.assign(part)


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
