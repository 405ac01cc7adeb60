"""Layers that are called once for all examples, such as an embedding of positions.

What such a layer gives has no axis of examples. Where it is only repeated for each of them, or
added to what they have, every example's own δ is found after that:

    zᵢ = xᵢ + f(a; w)        δᵢ = ∂ℓᵢ/∂zᵢ
"""

import tensorflow as tf

# What leaves the numbers and their order alone; what repeats them for each example, or adds.
_SHAPES, _MEETS = {"Identity", "ExpandDims", "Reshape"}, {"BroadcastTo", "Tile", "Add", "AddV2"}


def with_examples(site):
    """A `Site` as if its layer had been called for each example; itself where that is not seen.

    Args:
        site: a `Site` of a model that has been called. In a kernel the number of examples is not
            known, so that what has a known shape has no axis of them.
    """
    a, z = site.inputs, site.outputs
    if not (tf.is_symbolic_tensor(z) and tf.is_tensor(a)):
        return site
    if not (a.shape.is_fully_defined() and z.shape.is_fully_defined()):
        return site
    outputs = _meeting(z)
    for shape, inner in ((z.shape, a.shape), (z.shape[1:], a.shape[1:])):
        alone = shape == z.shape or z.shape[0] == 1
        if outputs is not None and alone and outputs.shape.as_list() == [None, *shape]:
            spread = tf.broadcast_to(a, tf.concat([tf.shape(outputs)[:1], inner], 0))
            spread = tf.ensure_shape(spread, [None, *inner])
            return site._replace(arguments=(spread, *site.arguments[1:]), outputs=outputs)
    return site


def _meeting(z):
    """What comes out where the numbers of z meet the examples, if they go nowhere else; or None."""
    while len(z.consumers()) == 1:
        (user,) = z.consumers()
        if user.type in _MEETS:
            return user.outputs[0]
        if user.type not in _SHAPES or user.inputs[0] is not z:
            return None
        (z,) = user.outputs
    return None
