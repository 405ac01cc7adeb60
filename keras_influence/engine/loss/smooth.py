"""Smooth versions of losses that have a kink in place of a curvature.

    max(0, 1 - s)  becomes  t log(1 + exp((1 - s) / t))
    |y - ŷ|        becomes  √((y - ŷ)² + t²) - t

with a temperature t > 0: within t of it everywhere, and equal in the limit t → 0
(the hinge's is that of Koh & Liang 2017, section 4.2).
"""

import math

import keras

# In temperatures, up to where a root's derivatives are as exact as any.
_NEAR = 8
# Among the best of those tried against retraining of an SVM: examples/smooth_hinge.py.
TEMPERATURE = 0.01


def smooth_hinge(y_true, y_pred, temperature=TEMPERATURE):
    """Mean over the last axis of t log(1 + exp((1 - y ŷ) / t)), for labels -1 and 1 or 0 and 1."""
    y_pred = keras.ops.convert_to_tensor(y_pred)
    y_true = keras.ops.cast(y_true, y_pred.dtype)
    signs = keras.ops.where(keras.ops.equal(y_true, 0), -1, y_true)
    return keras.ops.mean(_smooth_positive(1 - signs * y_pred, temperature), axis=-1)


def smooth_categorical_hinge(y_true, y_pred, temperature=TEMPERATURE):
    """t log(1 + exp((1 + max((1 - y) ŷ) - Σ y ŷ) / t)): smooth but where two wrong classes tie."""
    y_pred = keras.ops.convert_to_tensor(y_pred)
    y_true = keras.ops.cast(y_true, y_pred.dtype)
    right = keras.ops.sum(y_true * y_pred, axis=-1)
    wrong = keras.ops.max((1 - y_true) * y_pred, axis=-1)
    return _smooth_positive(1 + wrong - right, temperature)


def smooth_absolute_error(y_true, y_pred, temperature=TEMPERATURE):
    """Mean over the last axis of √((y - ŷ)² + t²) - t, with t in units of y."""
    y_pred = keras.ops.convert_to_tensor(y_pred)
    difference = keras.ops.cast(y_true, y_pred.dtype) - y_pred
    size = keras.ops.abs(difference)
    root = keras.ops.sqrt(keras.ops.square(difference) + temperature**2)
    # Far from the kink derivatives of the root lose all digits of its curvature, t² / root³; those
    # of what it is more than the size keep them.
    far = size + temperature**2 / (size + root)
    root = keras.ops.where(size < _NEAR * temperature, root, far)
    return keras.ops.mean(root - temperature, axis=-1)


def _smooth_positive(z, temperature):
    return temperature * keras.ops.softplus(z / temperature)


@keras.saving.register_keras_serializable(package="keras_influence")
class SmoothHinge(keras.losses.Loss):
    """Hinge loss with a curvature: the mean over the last axis of t log(1 + exp((1 - y ŷ) / t)).

    For a model that was trained with the hinge loss, `model.compile(loss=SmoothHinge(t))`
    keeps the weights, and lets every question be asked with a temperature of your choice.

    Args:
        temperature: t > 0, in units of the margin y ŷ.
        reduction, name: as in `keras.losses.Hinge`.

    Raises:
        ValueError: `temperature` is not a number > 0.
    """

    def __init__(
        self, temperature=TEMPERATURE, reduction="sum_over_batch_size", name="smooth_hinge"
    ):
        if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` should be a number > 0. Received: temperature={temperature!r}"
            )
        super().__init__(name=name, reduction=reduction)
        self.temperature = float(temperature)

    def call(self, y_true, y_pred):
        return smooth_hinge(y_true, y_pred, self.temperature)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


# Keras's losses without a curvature, and what stands in for them.
SMOOTH = {
    keras.losses.hinge: smooth_hinge,
    keras.losses.categorical_hinge: smooth_categorical_hinge,
    keras.losses.mean_absolute_error: smooth_absolute_error,
}
