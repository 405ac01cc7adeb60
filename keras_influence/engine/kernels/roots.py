"""Random directions at the outputs whose second moment is a loss's curvature there.

For each position of an output z let H = ∂²ℓ/∂z², (C, C). With B Bᵀ = H and random signs ε,
u = B ε has E[u uᵀ] = H: what sampling labels from the model's own distribution does for a
cross-entropy. Two closed forms need no matrix:

    diagonal    H = diag(h)                   u = √h ∘ ε
    softmax     H = s (diag(p) - p pᵀ)        u = √s (√p ∘ ε - p ⟨√p, ε⟩),   p = softmax(z)

Whether one of them is H is seen by one product of H with a random direction; where none is,
H is written out and taken apart, C products and an eigendecomposition for each position.
"""

import tensorflow as tf

_TINY = 1e-30
# Largest relative error of a product by a closed form that is that of H.
_MISS = {2: 5e-2, 4: 1e-3, 8: 1e-6}
# The part of terms that cancel which rounding may leave, in units of that error.
_CANCELLED = 1e-2


def diagonal(product, z, signs, direction):
    """u = √h ∘ ε, and how far H is from diag(h)."""
    h = product(tf.ones_like(z))
    return signs * tf.sqrt(tf.nn.relu(h)), _miss(product(direction), h * direction)


def softmax(product, z, signs, direction):
    """u = √s (√p ∘ ε - p ⟨√p, ε⟩), and how far H is from s (diag(p) - p pᵀ)."""
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
    return tf.sqrt(s) * (root * signs - p * _inner(root, signs)), miss


def dense(product, z, signs, direction):
    """u = Q √Λ ε of H = Q Λ Qᵀ, always right."""
    del direction

    def row(unit):
        return product(tf.broadcast_to(unit, tf.shape(z)))

    rows = tf.vectorized_map(row, tf.eye(z.shape[-1], dtype=z.dtype), warn=False)
    blocks = tf.stack(tf.unstack(rows, z.shape[-1]), axis=-1)
    # There is no eigensolver for two bytes.
    half = z.dtype if z.dtype.size > 2 else tf.float32
    values, vectors = (tf.cast(t, z.dtype) for t in tf.linalg.eigh(tf.cast(blocks, half)))
    return tf.linalg.matvec(vectors, signs * tf.sqrt(tf.nn.relu(values))), tf.zeros([], z.dtype)


# In the order to be tried.
ROOTS = {"diagonal": diagonal, "softmax": softmax, "dense": dense}


def direction_of_curvature(root, product, z, seed):
    """`(u, miss)` for an output z whose positions have no part in one another.

    Args:
        root: a name of `ROOTS`.
        product: v ↦ H v, for a tensor like z.
        z: the output, (b, ..., C), or (b,).
        seed: two integers, a tensor (2,).
    """
    signs = tf.where(tf.random.stateless_uniform(tf.shape(z), seed) < 0.5, -1.0, 1.0)
    direction = tf.random.stateless_normal(tf.shape(z), seed + 1)
    # A vector of single numbers has positions of one number each.
    form = ROOTS[root if z.shape.rank > 1 else "diagonal"]
    return form(product, z, tf.cast(signs, z.dtype), tf.cast(direction, z.dtype))


def root_of(product, z, seed):
    """The name of the first of `ROOTS` that holds for an output of a few examples."""
    for name in ROOTS:
        miss = float(direction_of_curvature(name, product, z, seed)[1])
        if miss <= tolerance(z.dtype):
            return name
    return "dense"


def tolerance(dtype):
    """The largest `miss` with which a closed form is believed."""
    return _MISS[dtype.size]


def _inner(a, b):
    return tf.reduce_sum(a * b, axis=-1, keepdims=True)


def _miss(found, expected, rounding=0.0):
    """Relative distance over the whole batch; 0 where both vanish."""
    size = tf.norm(found) + tf.norm(expected) + rounding
    return tf.norm(found - expected) / tf.maximum(size, _TINY)
