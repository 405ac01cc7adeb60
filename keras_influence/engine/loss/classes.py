"""What a classifier's labels and outputs say, whatever form they have."""

import dataclasses

import keras
import numpy as np

from keras_influence import _keras

# They take margins, for labels of 0 and 1 too.
_HINGES = (keras.losses.hinge, keras.losses.squared_hinge)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Labels as numbers of classes.

    Attributes:
        given: (n,) int, the class of each example, from 0 on.
        values: what the user calls class 0, 1, ...: the numbers that stand in the labels.
    """

    given: np.ndarray
    values: np.ndarray

    def like(self, numbers, shape):
        """Other classes in the form that labels of this shape have."""
        if len(shape) == 2 and shape[1] > 1:
            return np.eye(shape[1])[numbers]
        return self.values[numbers].reshape(-1, *shape[1:])


def read_classes(y, width=None):
    """`Classes` from labels, or None where they are no classes.

    Args:
        y: (n,) or (n, 1) integers; zeros and ones, or -1 and 1, in any dtype; or (n, classes) one-hot rows.
        width: numbers that the model puts out for one example, if known.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        one_hot = np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()
        return Classes(y.argmax(1), np.arange(y.shape[1])) if one_hot else None
    if y.ndim not in (1, 2) or y.size != len(y) or y.dtype.kind not in "biuf":
        return None
    flat = y.reshape(-1)
    if (flat == -1).any() and (flat == 1).any() and np.isin(flat, (-1, 1)).all():
        return Classes((flat > 0).astype(int), np.array([-1, 1]))
    if width in (None, 1) and np.isin(flat, (0, 1)).all():
        return Classes(flat.astype(int), np.arange(2))
    if width == 1 or not (flat >= 0).all() or not (flat == np.round(flat)).all():
        return None
    # Whole numbers in a float dtype are classes only where there is one output for each.
    if y.dtype.kind == "f" and (width is None or flat.max() >= width):
        return None
    return Classes(flat.astype(int), np.arange(width or int(flat.max()) + 1))


def probabilities(outputs, model, classes):
    """(n, classes) float64 from a classifier's outputs: (n, classes), or (n,) or (n, 1) for two.

    What a loss takes as logits goes through a softmax or sigmoid, as do margins, whose classes are -1
    and 1, and outputs that are no probabilities; rows that are positive are scaled to sum to 1.
    """
    z = np.asarray(outputs, np.float64)
    z = z.reshape(len(z), -1)
    margins = classes.values[0] < 0 or _keras.uses_loss(model, _HINGES)
    logits = margins or _keras.takes_logits(model) or z.min() < 0 or z.max() > 1 + 1e-6
    if z.shape[1] == 1:
        one = np.exp(-np.logaddexp(0, -z)) if logits else np.clip(z, 0, 1)
        return np.concatenate([1 - one, one], axis=1)
    if logits:
        z = np.exp(z - z.max(1, keepdims=True))
    return z / np.maximum(z.sum(1, keepdims=True), 1e-300)
