"""The Gauss-Newton matrix of a batch, and whether a loss is convex in the outputs."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.kernel import not_differentiable
from keras_influence.engine.kernels.outputs import (
    curved_outputs,
    filled,
    paired_by_example,
    slope_at_outputs,
)
from keras_influence.engine.loss.compiled import Weighting


def curvature_at_outputs(objective, batch, weight):
    """v ↦ Jᵀ (∂²L/∂z²) J v, with J = ∂z/∂θ, and ⟨∂L/∂z, J v⟩ of each example, (b,).

    No second derivative of the network.
    """
    theta, flatten = objective.parameters.tensors(), objective.parameters.flatten
    with objective.recorded() as inner:
        inner.watch(theta)
        with objective.at(theta):
            model, batch, y_pred = objective.called(batch)
            z = curved_outputs(objective.reading, model, batch, y_pred)
    with objective.at(theta):
        outer, free, slope, z = slope_at_outputs(
            objective.reading, model, batch, y_pred, z, objective.ones(batch), weight
        )
    # J v is the derivative of the linear map u ↦ Jᵀu, paired with v.
    with objective.recorded() as dual:
        u = [tf.zeros_like(t) for t in z]
        dual.watch(u)
        pulled = flatten(inner.gradient(z, theta, output_gradients=u))

    def product(v):
        pushed = filled(dual.gradient(pulled, u, output_gradients=v), u)
        bent = filled(outer.gradient(slope, free, output_gradients=pushed), free)
        scores = paired_by_example(slope, pushed, objective.ones(batch))
        return flatten(inner.gradient(z, theta, output_gradients=bent)), scores

    return product


def output_curvatures(objective, batch, weight, directions=8):
    """tᵀ (∂²ℓ/∂z²) t for a few random directions t of the outputs z, outside of kernels."""
    theta = objective.parameters.tensors()
    weight = Weighting.of(tf.constant(weight.vector(), objective.parameters.dtype))
    with primitives.replaced(), objective.at(theta):
        model, parts, y_pred = objective.called(batch)
        pairs = curved_outputs(objective.reading, model, parts, y_pred)
        outer, free, slope, _ = slope_at_outputs(
            objective.reading, model, parts, y_pred, pairs, objective.ones(batch), weight
        )
    rng = np.random.default_rng(0)
    found = []
    for _ in range(directions):
        t = [tf.constant(rng.standard_normal(a.shape), a.dtype) for a in free]
        try:
            bent = filled(outer.gradient(slope, free, output_gradients=t), free)
        except LookupError as error:
            raise not_differentiable(error) from error
        found.append(sum(float(tf.reduce_sum(a * b)) for a, b in zip(t, bent)))
    return np.array(found)
