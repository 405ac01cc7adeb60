"""Whether losses are negative logarithms of likelihoods, as TRAK takes them to be where it is given no output."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.problem import Problem

_CROSS_ENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)


def check_likelihoods(problem: Problem) -> None:
    """Raise a ValueError unless e^-ℓ is the likelihood of each training example's label."""
    if not _keras.only_uses_losses(problem.model, _CROSS_ENTROPIES):
        raise ValueError(
            "`output` is needed where the loss is no cross-entropy: a function of (x, y, y_pred) "
            "that the loss of an example is a function of, such as lambda x, y, y_pred: y_pred[:, 0]."
        )
    reason = _unlike(problem)
    if reason:
        raise ValueError(
            f"`output` is needed where {reason}: the losses of training examples are no "
            "logarithms of likelihoods. Give the log-odds as a function of (x, y, y_pred)."
        )


def _unlike(problem: Problem) -> str:
    """Why a cross-entropy is none; "" if it is one."""
    for batch in problem.train:
        if len(batch) == 3:
            return "training examples have weights"
        labels = (leaf.numpy() for leaf in tf.nest.flatten(batch[1]))
        if any((values != np.round(values)).any() for values in labels):
            return "labels are shared between classes"
    return str(_keras.unlike_logarithms(problem.model))
