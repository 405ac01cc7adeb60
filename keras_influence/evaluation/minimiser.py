"""Training to the exact minimum of a model's own loss, by SciPy's L-BFGS in float64."""

import dataclasses

import numpy as np
import scipy.optimize
import tensorflow as tf

from keras_influence import errors
from keras_influence.copies import double, double_precision, same
from keras_influence.engine.loss import checks
from keras_influence.evaluation.trainer import Trainer

# Losses and gradients take little memory, so batches may be larger than elsewhere.
_BATCH_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        theta: (p,) float64.
        before, after: norm of the gradient at the start and at the end.
        iterations: L-BFGS iterations.
        outside: paths of the weights that ended outside of their constraint, which L-BFGS
            does not know.
    """

    theta: np.ndarray
    before: float
    after: float
    iterations: int
    outside: tuple = ()


class Minimiser(Trainer):
    """Trains by L-BFGS to a minimum of the compiled loss, in float64, from given weights.

    Args:
        model: left as it is.
        train: the training data.
        settings: `Settings`; of these the data's and θ's count.
        tol: stop when the gradient is this small, relative to what one example contributes
            to it (for the base) or to its norm at the start (for a retraining).
        max_iter: L-BFGS iterations.
        proximal: ρ; ½ρ‖θ - θ₀‖² is added to the loss, with θ₀ the weights of `model`.

    Attributes:
        how: how training is done, in words.

    Raises:
        CopyError: Keras cannot copy the model.
    """

    def __init__(self, model, train, settings, *, tol=1e-3, max_iter=5000, proximal=0.0):
        checks.check_model(model)
        self._tol, self._max_iter, self._proximal = tol, max_iter, float(proximal)
        self._said = set()  # Weights that left their constraint.
        if settings.batch_size is None and isinstance(train, tuple):
            settings = dataclasses.replace(settings, batch_size=_BATCH_SIZE)
        with double_precision():
            try:
                super().__init__(model, double(model), train, settings)
            except (ValueError, TypeError, tf.errors.OpError):
                # A layer that insists on float32; bad data fails again, with its own message.
                super().__init__(model, same(model), train, settings)
        self.check_against(model)
        self.how = f"L-BFGS from the base, in {self.problem.parameters.dtype.name}"
        self.start = self._centre = self._values()

    precision = staticmethod(double_precision)

    @property
    def given(self):
        return self.model.weights

    def base(self, seed=None):
        """Go to the minimum for all training data, from where the model was; a `Minimum`."""
        goal = self._tol * one_example(self.problem)
        minimum = self._minimise(self.start, self.problem, (), goal)
        self.start = minimum.theta
        return minimum

    def without(self, left_out, seed=None):
        """Give these examples weight 0, n unchanged, and go to the minimum from the base."""
        group = self.problem.train.subset(left_out)
        return self._minimise(self.start, self.problem, group)

    def only(self, kept, seed=None):
        """Train on these examples alone, from the base."""
        return self._minimise(self.start, self.problem.only(kept), ())

    def _minimise(self, start, problem, left_out, goal=None):
        """L-BFGS from `start` until the gradient is at `goal`, as a `Minimum`."""
        norms = []

        def evaluate(theta):
            value, gradient = self.value_and_gradient(theta, problem, left_out)
            norms.append(float(np.linalg.norm(gradient)))
            return value, gradient

        def callback(intermediate_result):
            # The last evaluation was at the point that has just been accepted.
            if norms[-1] <= goal:
                raise StopIteration

        evaluate(start)
        goal = self._tol * norms[0] if goal is None else goal
        iterations = 0
        if norms[0] > goal:
            options = {"maxiter": self._max_iter, "maxfun": 10 * self._max_iter, "maxcor": 20}
            # At the kinks of a ReLU the gradient does not vanish: end where the loss stands still.
            options |= {"gtol": 0.0, "ftol": 1e-15}
            found = scipy.optimize.minimize(
                evaluate, start, jac=True, method="L-BFGS-B", callback=callback, options=options
            )
            start, iterations = found.x, int(found.nit)
            evaluate(start)
        outside = tuple(checks.outside_constraints(problem.parameters.variables))
        minimum = Minimum(start, norms[0], norms[-1], iterations, outside)
        if minimum.after > 10 * goal:
            _warn(minimum, goal)
        if not self._said.issuperset(outside):
            self._said.update(outside)
            _warn_of_constraints(outside)
        return minimum

    def value_and_gradient(self, theta, problem, left_out):
        """L + ½ρ‖θ - θ₀‖² and its gradient at θ, without the examples of `left_out`.

        The copy is left at θ.
        """
        self.assign(theta)
        value, gradient = problem.value_and_gradient(left_out)
        away = theta - self._centre
        value = value + self._proximal * (away @ away) / 2
        return value, gradient + self._proximal * away

    def _values(self):
        variables = self.problem.parameters.variables
        return np.concatenate([v.numpy().ravel() for v in variables]).astype(np.float64)

    def assign(self, theta):
        parameters = self.problem.parameters
        for variable, part in zip(parameters.variables, parameters.split(theta)):
            variable.assign(part)


def one_example(problem):
    """Norm of what one training example contributes to ∇L: the median of some."""
    gradients = problem.example_gradients(problem.train.subset(np.arange(min(64, problem.n))))
    return np.median(np.linalg.norm(gradients, axis=1)) / problem.n


def _warn(minimum, goal):
    errors.warn(
        f"L-BFGS stopped after {minimum.iterations} iterations with a gradient of "
        f"{minimum.after:.1e} where {goal:.1e} was wanted (it was {minimum.before:.1e}): the "
        "minimum is not exact. Raise `max_iter` or `tol`, or, for a network with kinks (ReLU), "
        "take a smooth one.",
        errors.ConvergenceWarning,
    )


def _warn_of_constraints(outside):
    errors.warn(
        f"L-BFGS knows no constraints, and went outside of that of {', '.join(outside)}: what is retrained is the "
        "model without it. Leave these weights out by `variables=`, or give a `fit`, whose optimizer has the "
        "constraint.",
        errors.ObjectiveWarning,
    )
