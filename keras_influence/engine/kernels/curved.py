"""The Gauss-Newton matrix of a batch, and whether a loss is convex in the outputs."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.missing import not_differentiable
from keras_influence.engine.kernels.outputs import (
    filled,
    outputs_of,
    paired_by_example,
    slope_at,
)
from keras_influence.linalg.solvers.rounding import eps_of

# The part of a vector outside of a space that it is in but for rounding.
_SPANNED = 1e-3
# Steps of Lanczos from a random direction.
_STEPS = 8


def curvature_at_outputs(objective, batch, weight):
    """v ↦ Jᵀ (∂²L/∂z²) J v, with J = ∂z/∂θ, and ⟨∂L/∂z, J v⟩ of each example, (b,).

    No second derivative of the network. Weights that the loss reads besides are outputs like the others.
    """
    theta, flatten = objective.parameters.tensors(), objective.parameters.flatten
    with objective.recorded() as inner:
        inner.watch(theta)
        with objective.at(theta):
            outputs = outputs_of(objective, batch)
    with objective.at(theta):
        slope = slope_at(objective, outputs, weight, theta)
    # J v is the derivative of the linear map u ↦ Jᵀu, paired with v.
    with objective.recorded() as dual:
        u = [tf.zeros_like(t) for t in slope.z]
        dual.watch(u)
        pulled = flatten(inner.gradient(slope.z, theta, output_gradients=u))

    def product(v):
        pushed = filled(dual.gradient(pulled, u, output_gradients=v), u)
        bent = slope.bent(pushed)
        by_example = slope.slope[: slope.count], pushed[: slope.count]
        scores = paired_by_example(*by_example, objective.ones(batch))
        return flatten(inner.gradient(slope.z, theta, output_gradients=bent)), scores

    return product


def is_curved_in_weights(objective, batch, weight):
    """Whether Jᵀ (∂²L/∂z²) u is more than rounding for a random u, and so the Gauss-Newton matrix, outside of kernels.

    By first derivatives of the network alone: the product J v takes the derivative of a gradient, which may
    be missing without a word. It is rounding beside Jᵀ u where probabilities are 0 and 1 in their precision.
    """
    theta = objective.parameters.tensors()
    weight = weight.tensors(objective.parameters.dtype)
    with primitives.replaced(), objective.at(theta):
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(theta)
            outputs = outputs_of(objective, batch)
        slope = slope_at(objective, outputs, weight, theta)
        like = enumerate(slope.free)
        u = [tf.random.stateless_normal(t.shape, [0, i], dtype=t.dtype) for i, t in like]
        sizes = [
            float(tf.linalg.global_norm(filled(tape.gradient(slope.z, theta, v), theta)))
            for v in (slope.bent(u), u)
        ]
    return sizes[0] > eps_of(slope.free[0].dtype.as_numpy_dtype) * sizes[1]


def output_curvatures(objective, batch, weight, weights=False):
    """Curvatures of the loss along unit directions of the outputs z, outside of kernels.

    The first is tᵀ (∂²ℓ/∂z²) t for a random t, the others are the Ritz values that a few steps
    from there find (Lanczos): the most negative of them is near the smallest eigenvalue.

    Args:
        weights: whether those that the loss reads count as outputs.
    """
    theta = objective.parameters.tensors()
    weight = weight.tensors(objective.parameters.dtype)
    with primitives.replaced(), objective.at(theta):
        about = outputs_of(objective, batch), weight, theta if weights else ()
        slope = slope_at(objective, *about)
    sizes = np.cumsum([0, *(int(np.prod(a.shape)) for a in slope.free)])

    def product(v):
        parts = [v[i:j].reshape(a.shape) for i, j, a in zip(sizes, sizes[1:], slope.free)]
        t = [tf.constant(part, a.dtype) for part, a in zip(parts, slope.free)]
        try:
            bent = slope.bent(t)
        except LookupError as error:
            raise not_differentiable(error) from error
        return np.concatenate([np.ravel(b).astype(float) for b in bent])

    if not sizes[-1]:
        return np.zeros(2)
    return _ritz_values(product, np.random.default_rng(0).standard_normal(sizes[-1]))


def _ritz_values(product, v):
    """The Rayleigh quotient of v, then the Ritz values of v, H v, H² v, ..., ascending."""
    basis, images = [], []
    for _ in range(min(_STEPS, len(v))):
        basis.append(v / np.linalg.norm(v))
        images.append(product(basis[-1]))
        v, size = images[-1], np.linalg.norm(images[-1])
        for _ in range(2):  # Once leaves what rounding makes large.
            v = v - np.transpose(basis) @ (basis @ v)
        if not np.linalg.norm(v) > _SPANNED * size:
            break
    small = np.array(basis) @ np.transpose(images)
    if not np.isfinite(small).all():
        return np.full(2, np.nan)
    return np.append(small[0, 0], np.linalg.eigvalsh((small + small.T) / 2))
