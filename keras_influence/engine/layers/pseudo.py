"""Weight gradients whose second moment or sum is the Gauss-Newton matrix, seen layer by layer."""

from typing import NamedTuple

import tensorflow as tf

from keras_influence.engine.kernels.outputs import filled, outputs_of, slope_at
from keras_influence.engine.kernels.roots import root, root_of, signs
from keras_influence.engine.layers.sites import check_outside, recording, used_elsewhere
from keras_influence.errors import SolverError


class PseudoSignals(NamedTuple):
    """What pseudo-gradients are made of; see `pseudo_signals`.

    Attributes:
        sites, deltas: as of `signals`, with ∂⟨uᵢ, yᵢ⟩/∂zᵢ for δ.
        gradients: ∂/∂θ Σ ⟨uᵢ, yᵢ⟩ of the batch as a whole, a tensor or None for each variable.
        elsewhere: for each variable, whether the outputs depend on it by another way than these
            layers too, as where one multiplies by a weight that it borrows from another.
        miss: how far the curvature of the outputs is from the form that u takes it for.
    """

    sites: list
    deltas: list
    gradients: list
    elsewhere: list
    miss: tf.Tensor


def pseudo_signals(objective, layers, batch, weight, seed, roots):
    """`signals` of ⟨uᵢ, yᵢ⟩ with y the model's outputs or logits and u random, E[u uᵀ] = ∂²ℓᵢ/∂y².

    The second moment of such weight gradients is the Gauss-Newton matrix.

    Args:
        objective, layers, batch, weight: as of `signals`.
        seed: two integers, a tensor (2,).
        roots: names of `roots.ROOTS`, from `roots_of`.

    Raises:
        InnerCallError: a layer is called inside a loop or a branch.
    """

    def draw(products, free):
        seeds = [seed + 2 * i for i in range(len(free))]
        found = [root(*about) for about in zip(roots, products, free, [s + 1 for s in seeds])]
        return found, [r.times(signs(z, s)) for r, z, s in zip(found, free, seeds)]

    return _signals(objective, layers, batch, weight, draw)


def contributed_signals(objective, layers, batch, weight, columns, roots):
    """The same with uᵢ one column of the root B of ∂²ℓᵢ/∂y², all of whose columns give J B Bᵀ Jᵀ.

    Args:
        columns: (b,) which one for each example, in the order of `strengths`.
        objective, layers, batch, weight, roots: as of `pseudo_signals`.
    """

    def draw(products, free):
        found, start, u = _roots(roots, products, free), 0, []
        for r, z in zip(found, free):
            size = tf.reduce_prod(tf.shape(z)[1:])
            u.append(
                r.times(tf.reshape(tf.one_hot(columns - start, size, dtype=z.dtype), tf.shape(z)))
            )
            start += size
        return found, u

    return _signals(objective, layers, batch, weight, draw)


def strengths(objective, batch, weight, roots):
    """The squared norms of the columns of B, (b, q), of all outputs side by side; and the miss."""
    with objective.at(objective.parameters.tensors()):
        products, free, _ = _products(objective, outputs_of(objective, batch), weight)
        found = _roots(roots, products, free)
    flat = [tf.reshape(r.strengths, [tf.shape(r.strengths)[0], -1]) for r in found]
    return tf.concat(flat, 1), tf.add_n([r.miss for r in found])


def _roots(names, products, free):
    seed = tf.constant([0, 1])
    return [root(name, product, z, seed) for name, product, z in zip(names, products, free)]


def _signals(objective, layers, batch, weight, draw):
    theta = objective.parameters.tensors()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(theta)
        with objective.at(theta), recording(layers) as sites:
            outputs = outputs_of(objective, batch)
    with objective.at(theta):
        products, free, y = _products(objective, outputs, weight)
    found, u = draw(products, free)
    check_outside(y, sites)
    sources = [site.outputs for site in sites]
    gradients = tape.gradient(y, sources + theta, output_gradients=u)
    reached = [(s, tf.convert_to_tensor(g)) for s, g in zip(sites, gradients) if g is not None]
    return PseudoSignals(
        sites=[site for site, _ in reached],
        deltas=[delta for _, delta in reached],
        gradients=gradients[len(sites) :],
        elsewhere=used_elsewhere(y, theta, sites),
        miss=tf.add_n([r.miss for r in found]),
    )


def roots_of(objective, batch, weight):
    """The name of a root in `roots.ROOTS` for each output that the loss is curved in, eagerly.

    Raises:
        SolverError: there is none.
    """
    if not objective.reading.has_outputs(objective.model()):
        raise SolverError(
            "All of the model's loss is added by its layers (`add_loss`), so that nothing is known "
            "of it output by output, as EK-FAC and preconditioners made of layers need. "
            "Use CG(preconditioner='nystrom') or method='direct'."
        )
    with objective.at(objective.parameters.tensors()):
        products, free, _ = _products(objective, outputs_of(objective, batch), weight)
    seed = tf.constant([0, 0])
    return tuple(root_of(product, output, seed) for product, output in zip(products, free))


def _products(objective, outputs, weight):
    """Functions v ↦ (∂²ℓ/∂y²) v for each output y that the loss is a function of, these by
    themselves, and in the model.
    """
    tape, free, slopes, y, _ = slope_at(objective, outputs, weight)

    def product_of(slope, output):
        return lambda v: filled([tape.gradient(slope, output, output_gradients=v)], [output])[0]

    return [product_of(slope, output) for slope, output in zip(slopes, free)], free, y
