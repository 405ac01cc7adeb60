"""A user's function of the outputs in place of the loss, a `target`: its values, gradients and checks."""

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.checksums import fingerprint_of_function, values_of_function
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.looks import few_of, near
from keras_influence.engine.loss.terms import rows_of


class Targets:
    """t(x, y, y_pred) of single examples and its gradients in θ, for one user's t after another.

    Args:
        objective: an `Objective`, whose `made` keeps it.
    """

    def __init__(self, objective):
        self._objective = objective
        self.parameters, self.kernels = objective.parameters, Kernels(Weighting, loop=False)
        self._target, self._print = None, None

    def values(self, batch, target, theta=None):
        """t of a batch, eagerly, as `target` returns it, at the present weights or at other tensors."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        with self._objective.at(self.parameters.tensors() if theta is None else theta):
            return target(x, y, _keras.call_model(self._objective.model(), x))

    def depends(self, batch, target):
        """Whether a target of a batch has a gradient in θ at all, zero or not."""
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            value = self.values(batch, target, theta)
        return any(g is not None for g in tape.gradient(value, theta))

    def take(self, target):
        """Trace a target anew if it is another one, or if it reads other values than before."""
        found = fingerprint_of_function(target), values_of_function(target)
        if self._target is not target or self._print != found:
            self._target, self._print = target, found
            self.kernels.forget()

    @kernel()
    def with_gradients(self, batch, weight):
        """t of each example and its gradient, (b, 1 + p), for the target that was taken."""
        del weight
        rows = tf.range(rows_of(batch))
        return tf.map_fn(
            lambda i: self._alone(batch, i), rows, fn_output_signature=self.parameters.dtype
        )

    def _alone(self, batch, i):
        """t of example i, as the first of a pair of itself, and its gradient, (1 + p,)."""
        pair = tf.nest.map_structure(lambda t: tf.gather(t, [i, i]), batch)
        theta = self.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            value = self.values(pair, self._target, theta)
            value = tf.cast(tf.reshape(value, [-1])[0], self.parameters.dtype)
        gradient = self.parameters.flatten(tape.gradient(value, theta))
        return tf.concat([value[None], gradient], 0)


def check_target(target, objective, batches, weight, name="target", data="test"):
    """Raise unless `target(x, y, y_pred)` gives one number per example.

    Args:
        target: what a user gave.
        objective: an `Objective`.
        batches: the data that it is to be asked about.
        weight: the `Weighting` of single examples.
        name: of the argument.
        data: what to call the data in messages.

    Raises:
        TypeError: `target` is not callable.
        ValueError: it fails, or returns something of another shape.
    """
    check_callable(target, name)
    few, targets = few_of(batches, 3), objective.made(Targets)
    targets.take(target)
    try:
        value = tf.convert_to_tensor(targets.values(few, target))
    except Exception as error:
        raise ValueError(f"`{name}` failed on the {data} data: {error}") from error
    shape = tuple(value.shape)
    if shape not in ((size_of(few),), (size_of(few), 1)) or not value.dtype.is_floating:
        raise ValueError(
            f"`{name}` should return floats of shape (batch,), one per example. Received: "
            f"{value.dtype.name} of shape {shape} for a batch of {size_of(few)}"
        )
    try:
        traced = targets.with_gradients(few, weight).numpy()[:, 0]
    except NotImplementedError as error:  # A tensor of a graph was to be made an array.
        raise ValueError(
            f"`{name}` should be written with TensorFlow or `keras.ops`, without NumPy, so that it can be "
            f"differentiated: {error}"
        ) from error
    if not near(traced, np.ravel(value)):
        # It reads what has changed since, as an attribute of a layer. Or it cannot be believed.
        targets.kernels.forget()
        traced = targets.with_gradients(few, weight).numpy()[:, 0]
        if not near(traced, np.ravel(value)):
            again = np.ravel(targets.values(few, target))
            raise ValueError(_not_of_examples(name, near(again, np.ravel(value))))
    if not targets.depends(few, target):
        raise ValueError(
            f"`{name}` should depend on the model's outputs, and be differentiable: no gradient comes back "
            "through it. A comparison, an argmax, a cast to integers and NumPy's functions have none; take a "
            "probability, a logit or a margin."
        )


def check_callable(target, name="target"):
    """Raise a TypeError unless it is a function."""
    if not callable(target):
        raise TypeError(
            f"`{name}` should be a function of (x, y, y_pred) that returns one number per example. "
            f"Received: {target!r}"
        )


def check_finite(rows, start, name):
    """Raise a ValueError that names the first example of whose target a gradient, a row, is not finite."""
    bad = np.flatnonzero(~np.isfinite(np.sum(rows, axis=1)))
    if bad.size:
        raise ValueError(
            f"`target` has a gradient that is NaN or infinite for example {start + bad[0]} of "
            f"`{name}`. Is there a logarithm or a square root of 0? A confident model's probability "
            "is 1 or 0 in float32: add a small number, or take logits."
        )


def _not_of_examples(name, steady):
    """What to say of a target whose value is not that of each example by itself."""
    if steady:
        return (
            f"`{name}` gives an example another value beside other examples than by itself: it should be a "
            "function of each example alone. For one number of all test examples take WholeSet(function)."
        )
    return (
        f"`{name}` gives other values each time that it is called. Take what is random out of it."
    )
