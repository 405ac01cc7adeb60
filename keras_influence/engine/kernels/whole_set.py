"""One number of a whole test set's outputs, and its gradient, over any number of batches.

With J_i the derivative of example i's outputs in θ, ∇f = Σ_i J_iᵀ ∂f/∂out_i: the outputs of all
examples, then f and its slope there, then each batch once more, backwards. All of it is eager:
nothing of the user's function or model is frozen in a trace.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_influence.engine.data import rows
from keras_influence.engine.kernels.outputs import filled


@dataclasses.dataclass(frozen=True)
class WholeSet:
    """A `target` that is one number of the whole test set, not one of each example.

        def gap(x, y, y_pred):  # in what two groups are given on average
            group = x[:, 3] > 0
            return keras.ops.mean(y_pred[group]) - keras.ops.mean(y_pred[~group])

        influence(model, test, train, target=WholeSet(gap))

    Scores then have one row: how that number would change without each training example. It may
    be a fairness gap, a smooth surrogate of an AUROC, a calibration error, a mean.

    Args:
        function: of (x, y, y_pred) of all test examples, in their order, however they are
            batched. Returns a scalar, differentiable in `y_pred`; written with TensorFlow or
            `keras.ops`. It is run eagerly. The test set has to fit into memory.

    Raises:
        TypeError: `function` is not callable.
    """

    function: Callable

    def __post_init__(self):
        if not callable(self.function):
            raise TypeError(
                "`function` should be a function of (x, y, y_pred) of the whole test set that "
                f"returns one number. Received: {self.function!r}"
            )


class Together:
    """A test set that is asked as one: it gives one row.

    Args:
        batches: its examples, as `Batches`.
    """

    n = 1

    def __init__(self, batches):
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        return iter(self._batches)


def value_of_set(objective, batches, target):
    """f of the whole set, a float.

    Args:
        objective: an `Objective`.
        batches: the test set, as `Batches`.
        target: a `WholeSet`.

    Raises:
        ValueError: the function fails, or returns something else than one finite number.
    """
    return float(_value(target, *_together(objective, batches)))


def gradient_of_set(objective, batches, target):
    """∇f, (p,) float64; arguments and errors as of `value_of_set`.

    Raises:
        ValueError: also where f does not depend on the outputs.
    """
    x, y, outputs = _together(objective, batches)
    flat = tf.nest.flatten(outputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(flat)
        value = _value(target, x, y, outputs)
    slopes = tape.gradient(value, flat)
    if all(slope is None for slope in slopes):
        raise ValueError(
            "`target` does not depend on `y_pred` by operations that TensorFlow differentiates: "
            "a count, a rank or an argmax has no slope. Take a smooth stand-in, as a sigmoid for "
            "a step, and TensorFlow or `keras.ops` in place of NumPy."
        )
    slopes, theta = filled(slopes, flat), objective.parameters.tensors()
    total, start = np.zeros(objective.parameters.size), 0
    for batch in batches:
        stop = start + rows.size(batch)
        total += _pulled_back(objective, theta, batch, [s[start:stop] for s in slopes])
        start = stop
    if not np.isfinite(total).all():
        raise ValueError(
            "`target` has a gradient that is NaN or infinite. Is there a square root or a "
            "logarithm of 0, or a mean over an empty group?"
        )
    return total


def _pulled_back(objective, theta, batch, slopes):
    """Σ_i J_iᵀ slope_i over a batch, (p,) float64."""
    if rows.size(batch) == 1:  # A batch of one is a special case in too many places.
        batch = rows.take(batch, [0, 0])
        slopes = [tf.concat([s, tf.zeros_like(s)], 0) for s in slopes]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(theta)
        with objective.at(theta):
            outputs = tf.nest.flatten(objective.called(batch)[2])
    found = tape.gradient(outputs, theta, output_gradients=slopes)
    return objective.parameters.flatten(found).numpy().astype(np.float64)


def _together(objective, batches):
    """x and y of all examples, and the model's outputs for them."""
    batches = list(batches)
    if len({rows.layout(batch) for batch in batches}) > 1:
        raise ValueError(
            "`target` is about the whole test set, whose examples should have the same shape in "
            "all batches. Pad them alike."
        )
    with objective.at(objective.parameters.tensors()):
        outputs = rows.joined([objective.called(batch)[2] for batch in batches])
    x, y, _ = keras.utils.unpack_x_y_sample_weight(rows.joined(batches))
    return x, y, outputs


def _value(target, x, y, outputs):
    """f as a scalar tensor."""
    try:
        value = tf.convert_to_tensor(target.function(x, y, outputs))
    except Exception as error:
        raise ValueError(f"`target` failed on the test data: {error}") from error
    if value.shape.num_elements() != 1 or not value.dtype.is_floating:
        raise ValueError(
            "`target` should return one float for the whole test set. Received: "
            f"{value.dtype.name} of shape {tuple(value.shape)}"
        )
    if not np.isfinite(value.numpy()).all():
        raise ValueError("`target` is NaN or infinite on the test data. Is a group empty?")
    return tf.reshape(value, [])
