"""Which layer has a wrong second derivative."""

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels import primitives
from keras_influence.engine.layers.sites import recording

_STEP = 1e-3
_MISS = 0.05


def culprit(objective, batch):
    """The path of the first layer whose gradient has other derivatives than differences show.

    Args:
        objective: an `Objective`.
        batch: a few examples.

    Returns:
        A path, or None where no layer by itself is wrong.
    """
    leaves = _keras.leaves_of(objective.model())
    with primitives.replaced(), objective.at(objective.parameters.tensors()):
        with recording(leaves) as sites:
            objective.called(batch)
        for site in sites:
            if _is_wrong(site):
                return site.layer.path
    return None


def _is_wrong(site):
    """Whether ∂/∂a ⟨r, f(a)⟩ along a random direction is not what differences of it are."""
    a = site.arguments[0]
    if not isinstance(a, tf.Tensor) or not a.dtype.is_floating:
        return False
    rng = np.random.default_rng(0)
    r, direction = (tf.constant(rng.standard_normal(t.shape), t.dtype) for t in (_run(site, a), a))

    def slope(at):
        with tf.GradientTape() as tape:
            tape.watch(at)
            paired = tf.reduce_sum(tf.square(_run(site, at)) * r)
        found = tape.gradient(paired, at)
        return tf.zeros_like(at) if found is None else found

    with tf.GradientTape() as tape:
        tape.watch(a)
        first = slope(a)
    try:
        image = tape.gradient(first, a, output_gradients=direction)
    except LookupError:
        return True
    image = np.zeros(a.shape) if image is None else image.numpy()
    truth, half = (
        ((slope(a + h * direction) - slope(a - h * direction)) / (2 * h)).numpy()
        for h in (_STEP, _STEP / 2)
    )
    length = max(np.linalg.norm(truth), np.linalg.norm(image))
    steady = np.linalg.norm(truth - half) <= _MISS / 2 * length
    return bool(steady and np.linalg.norm(image - truth) > _MISS * length)


def _run(site, a):
    found = site.layer.call(a, *site.arguments[1:], **site.keywords)
    return tf.nest.flatten(found)[0]
