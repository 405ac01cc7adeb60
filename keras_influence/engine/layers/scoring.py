"""Gradients of single examples and their products with vectors, by the fastest way that is right.

The contraction of layer inputs with output gradients is fast, and wrong where a layer's call is
not all that its weights do: tied weights, a batch axis folded into another. So every batch it is
used on is certified by an identity that needs no belief: for random weights ω and any s,

    Σ_i ω_i ⟨g_i, s⟩ = ⟨∂/∂θ Σ_i ω_i ℓ_i, s⟩

with the right side an ordinary gradient. A batch that fails it, and all after it, are taken by
the plain way, a second backward pass for each vector.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.sizes import batch_size
from keras_influence.engine.layers.contraction import Contraction
from keras_influence.engine.loss.looks import computing

_SEED = 20_170_305


class Scorer:
    """Example gradients and scores of one model on one data set, certified batch by batch.

    Args:
        objective: an `Objective`.
        model: its model.
        weight: the `Weighting` of what the examples contribute.
        name: what the data are called in messages.

    Attributes:
        fast: whether the contraction has been right on every batch so far.
    """

    def __init__(self, objective, model, weight, name):
        self._objective, self._weight, self._name = objective, weight, name
        if objective.contraction is None:
            objective.contraction = Contraction(objective, model)
        self.fast = objective.contraction.covers
        self._rng = np.random.default_rng(_SEED)
        self._start = 0

    def gradients(self, batch):
        """∇ of each example of the batch, (b, p)."""
        with computing(self._name):
            return self._gradients(batch)

    def _gradients(self, batch):
        rows = None
        if self.fast:
            rows = self._try(self._objective.contraction.example_gradients, batch)
            if rows is not None:
                s = self._random(rows.shape[1])
                self.fast = self._certified(batch, rows @ s, s)
        if not self.fast:
            rows = self._objective.example_gradients(batch, self._weight).numpy()
        self._check(rows, batch)
        return rows

    def scores(self, batch, vectors):
        """⟨∇_j, s⟩ for each example j and each row s of blocks of vectors, list of (b, k)."""
        with computing(self._name):
            return self._scores(batch, vectors)

    def _scores(self, batch, vectors):
        values = None
        if self.fast:
            s = self._random(self._objective.parameters.size)
            values = self._try(
                lambda *a: [self._objective.contraction.scores(*a, part) for part in vectors], batch
            )
            if values is not None:
                certain = self._contracted(batch, s, many=len(vectors[0]) > 1)
                self.fast = self._certified(batch, certain, s)
        if not self.fast:
            values = [self._objective.scores(batch, self._weight, part) for part in vectors]
        values = [np.asarray(part) for part in values]
        self._check(values[0], batch)
        return values

    def _contracted(self, batch, s, many):
        """The contraction with a random vector, by the kernel that takes the others."""
        vectors = np.stack([s, s]) if many else s[None]
        return self._objective.contraction.scores(batch, self._weight, vectors).numpy()[:, 0]

    def _try(self, kernel, batch):
        """What the contraction gives, None where it cannot be traced."""
        try:
            found = kernel(batch, self._weight)
        except (ValueError, TypeError, IndexError, tf.errors.OpError):
            self.fast = False
            return None
        return found if isinstance(found, list) else found.numpy()

    def _certified(self, batch, paired, s):
        """Whether the identity holds for what the contraction gave, paired with s."""
        omega = self._rng.uniform(0.5, 1.5, len(paired)).astype(s.dtype)
        truth = gradient_of(self._objective, batch, self._weight, omega)
        if not np.isfinite(truth).all():
            self._check(self._objective.example_gradients(batch, self._weight).numpy(), batch)
        size = np.linalg.norm(truth) + 1e-3 * np.linalg.norm(paired)
        tolerance = 1e-3 if s.dtype.itemsize <= 4 else 1e-7
        return bool(abs(omega @ paired - truth @ s) <= tolerance * size + 1e-30)

    def _random(self, size):
        dtype = self._objective.parameters.dtype.as_numpy_dtype
        return self._rng.standard_normal(size).astype(dtype)

    def _check(self, rows, batch):
        """Raise where an example has no finite gradient, and say which."""
        bad = np.flatnonzero(~np.isfinite(np.sum(rows, axis=1)))
        if bad.size:
            raise ValueError(
                f"The loss of example {self._start + bad[0]} of `{self._name}` has a gradient that "
                "is NaN or infinite. Is its label what the loss takes, and is there a square root "
                "or a logarithm of 0?"
            )
        self._start += batch_size(batch)


def gradient_of(objective, batch, weight, omega=None, shift=None):
    """∂/∂θ of the batch's part of n L, (p,) float64."""
    return value_and_gradient_of(objective, batch, weight, omega, shift)[1:]


def value_of(objective, batch, weight):
    """The batch's part of n L."""
    return float(value_and_gradient_of(objective, batch, weight, None, None)[0])


def value_and_gradient_of(objective, batch, weight, omega=None, shift=None):
    """The batch's part of n L and its gradient, with weights ω of the examples, (1 + p,) float64."""
    omega = np.ones(batch_size(batch)) if omega is None else omega
    shift = np.zeros(objective.parameters.size) if shift is None else shift
    return objective.value_and_gradient(batch, weight, omega, shift).numpy().astype(np.float64)
