"""An identity that certifies gradients of single examples without belief: for random weights ω and any s,

    Σ_i ω_i ⟨g_i, s⟩ = ⟨∂/∂θ Σ_i ω_i ℓ_i, s⟩

with the right side an ordinary gradient, and the sum over a part of a batch, drawn at random.
"""

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.layers.finite import refuse_bad

_SEED = 20_170_305
# The identity is asked of one in so many of a batch's examples, and of so many at least: an
# ordinary gradient of all of them costs as much as what it certifies.
_PART, _LEAST = 16, 8
# A variable whose gradient is a smaller part of all may have nothing but rounding in it.
_SMALL = 1e-4


class Identity:
    """The identity for one model on one data set, with one s for all of its batches.

    Args:
        objective: an `Objective`.
        weight: the `Weighting` of what the examples contribute.
        name: what the data are called in messages.

    Attributes:
        s: (p,), None until it is drawn.
    """

    def __init__(self, objective, weight, name):
        self._objective, self._weight, self._name = objective, weight, name
        self._rng = np.random.default_rng(_SEED)
        self.s = None

    def draw(self, first, start):
        """Draw s, from what the gradients of a first batch are: no weights are to be lost beside others.

        Args:
            first: the batch.
            start: position of its first example, for messages.
        """
        _, truth = self._truth(first, _LEAST, start)
        found = self._lengths(truth)
        # What is smaller than this part of all may be rounding.
        self._sizes = np.maximum(found, _SMALL * np.linalg.norm(found))
        self._sizes[self._sizes == 0] = 1.0
        s = self._rng.standard_normal(len(truth), np.promote_types(truth.dtype, np.float32))
        for part, size in zip(self._by_variable(s), self._sizes):
            part /= size
        self.s = s.astype(truth.dtype, copy=False)

    def holds(self, batch, paired, start):
        """Whether it does, for the ⟨g_i, s⟩ that were found for a batch, (b,)."""
        count = min(len(paired), max(_LEAST, len(paired) // _PART))
        (asked, omega), truth = self._truth(batch, count, start)
        paired = paired[asked]
        size = np.linalg.norm(self._lengths(truth) / self._sizes) + 1e-3 * np.linalg.norm(paired)
        tolerance = 1e-3 if truth.dtype.itemsize <= 4 else 1e-7
        return bool(abs(omega @ paired - truth @ self.s) <= tolerance * size + 1e-30)

    def _by_variable(self, vector):
        """Its part for each variable, as views."""
        return np.split(vector, np.cumsum(self._objective.parameters.sizes)[:-1])

    def _lengths(self, vector):
        """The norm of the part for each variable, of which one at a time is held in float64."""
        return np.array([np.linalg.norm(v.astype(np.float64)) for v in self._by_variable(vector)])

    def _truth(self, batch, count, start):
        """Some of the examples with random weights ω, and the gradient of their losses together."""
        dtype, count = self._objective.parameters.dtype.as_numpy_dtype, min(count, size_of(batch))
        asked = np.sort(self._rng.choice(size_of(batch), count, replace=False))
        omega = self._rng.uniform(0.5, 1.5, count).astype(dtype)
        truth = weighted_gradient(self._objective, self._weight, batch, asked, omega)
        if not np.isfinite(truth).all():
            rows = self._objective.example_gradients(batch, self._weight).numpy()
            refuse_bad(rows, start, self._name)
        return (asked, omega), truth


def weighted_gradient(objective, weight, batch, places, omega):
    """The gradient of the losses of some examples with weights ω, (p,), by the kernel that all else rests on."""
    nowhere = tf.zeros([objective.parameters.size], objective.parameters.dtype)
    return objective.value_and_gradient(take(batch, places), weight, omega, nowhere).numpy()[1:]
