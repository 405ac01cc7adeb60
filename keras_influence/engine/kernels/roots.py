"""Roots of a loss's curvature at the outputs, and random directions that have it for second moment.

For each position of an output z let H = ∂²ℓ/∂z², (C, C). With B Bᵀ = H and random signs ε,
u = B ε has E[u uᵀ] = H: what sampling labels from the model's own distribution does for a
cross-entropy. Two closed forms need no matrix:

    diagonal    H = diag(h)                   B ε = √h ∘ ε
    softmax     H = s (diag(p) - p pᵀ)        B ε = √s (√p ∘ ε - p ⟨√p, ε⟩),   p = softmax(z)

Whether one of them is H is seen by one product of H with a random direction; where none is,
H is written out and taken apart, C products and an eigendecomposition for each position.
"""

from typing import Any, NamedTuple

import tensorflow as tf

_TINY = 1e-30
# Largest relative error of a product by a closed form that is that of H.
_MISS = {2: 5e-2, 4: 1e-3, 8: 1e-6}
# The part of terms that cancel which rounding may leave, in units of that error.
_CANCELLED = 1e-2


class Root(NamedTuple):
    """B with B Bᵀ = H at each position of an output z.

    Attributes:
        times: ε ↦ B ε, for a tensor like z.
        strengths: squared norms of the columns of B, like z.
        miss: how far H is from the form that B takes it for.
    """

    times: Any
    strengths: tf.Tensor
    miss: tf.Tensor


def diagonal(product, z, direction):
    """The `Root` of H = diag(h)."""
    h = product(tf.ones_like(z))
    miss = _miss(product(direction), h * direction)
    h = tf.nn.relu(h)
    return Root(lambda e: e * tf.sqrt(h), h, miss)


def softmax(product, z, direction):
    """The `Root` of H = s (diag(p) - p pᵀ)."""
    tiny = tf.constant(_TINY, z.dtype)
    p = tf.nn.softmax(z)
    # Classes whose probability has vanished have no part in H, and say nothing about it.
    direction = tf.where(p > tiny, direction, tf.zeros_like(direction))
    p = tf.maximum(p, tiny)
    root = tf.sqrt(p)
    # With d ⟂ √p the matrix maps d / √p + 1 to s √p ∘ d, and ⟨d / √p, ·⟩ of that is s ‖d‖².
    d = direction - root * _inner(root, direction)
    image = product(d / root + 1)
    s = tf.nn.relu(_inner(d / root, image)) / tf.maximum(_inner(d, d), tiny)
    # Where a class has nearly all of the probability H is small, by terms that cancel.
    rounding = _CANCELLED * tf.norm(s * root * direction)
    miss = _miss(image, s * root * d, rounding)
    return Root(
        lambda e: tf.sqrt(s) * (root * e - p * _inner(root, e)),
        s * p * ((1 - p) ** 2 + _inner(p, p) - p**2),
        miss,
    )


def dense(product, z, direction):
    """The `Root` Q √Λ of H = Q Λ Qᵀ, always right."""
    del direction

    def row(unit):
        return product(tf.broadcast_to(unit, tf.shape(z)))

    rows = tf.vectorized_map(row, tf.eye(z.shape[-1], dtype=z.dtype), warn=False)
    blocks = tf.stack(tf.unstack(rows, z.shape[-1]), axis=-1)
    # There is no eigensolver for two bytes.
    half = z.dtype if z.dtype.size > 2 else tf.float32
    values, vectors = (tf.cast(t, z.dtype) for t in tf.linalg.eigh(tf.cast(blocks, half)))
    values = tf.nn.relu(values)
    return Root(
        lambda e: tf.linalg.matvec(vectors, e * tf.sqrt(values)), values, tf.zeros([], z.dtype)
    )


# In the order to be tried.
ROOTS = {"diagonal": diagonal, "softmax": softmax, "dense": dense}


def root(name, product, z, seed):
    """The `Root` for an output z whose positions have no part in one another.

    Args:
        name: of `ROOTS`.
        product: v ↦ H v, for a tensor like z.
        z: the output, (b, ..., C), or (b,).
        seed: two integers, a tensor (2,), of the direction in which the form is looked at.
    """
    direction = tf.cast(tf.random.stateless_normal(tf.shape(z), seed), z.dtype)
    # A vector of single numbers has positions of one number each.
    form = ROOTS[name if z.shape.rank > 1 else "diagonal"]
    return form(product, z, direction)


def signs(z, seed):
    """Random signs like z."""
    drawn = tf.where(tf.random.stateless_uniform(tf.shape(z), seed) < 0.5, -1.0, 1.0)
    return tf.cast(drawn, z.dtype)


def root_of(product, z, seed):
    """The name of the first of `ROOTS` that holds for an output of a few examples."""
    *closed, dense_ = ROOTS
    for name in closed:
        if float(root(name, product, z, seed).miss) <= tolerance(z.dtype):
            return name
    return dense_  # Always right: it need not be tried.


def tolerance(dtype):
    """The largest `miss` with which a closed form is believed."""
    return _MISS[dtype.size]


def _inner(a, b):
    return tf.reduce_sum(a * b, axis=-1, keepdims=True)


def _miss(found, expected, rounding=0.0):
    """Relative distance over the whole batch; 0 where both vanish."""
    size = tf.norm(found) + tf.norm(expected) + rounding
    return tf.norm(found - expected) / tf.maximum(size, _TINY)
