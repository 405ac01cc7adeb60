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
            known, so that what has a known shape has no axis of them. Whether the first axis of
            what comes out is that of the examples, who uses it has to count.
    """
    z = site.outputs
    # What is inside of a loop or a branch cannot be used outside of it.
    if not tf.is_symbolic_tensor(z) or z.graph is not tf.compat.v1.get_default_graph():
        return site
    outputs = _meeting(z) if site.arguments and z.shape.is_fully_defined() else None
    if outputs is None:
        return site
    for front in (0, 1) if z.shape[0] == 1 else (0,):
        if outputs.shape == tf.TensorShape([None, *z.shape[front:]]):
            return _spread(site, outputs, front)
    return site


def _spread(site, outputs, front):
    """A site that gives `outputs`, its input repeated for each example, less `front` axes."""
    a = site.inputs
    if not tf.is_tensor(a):  # All arguments of a layer, whose call tells what of them is repeated.
        return site._replace(outputs=outputs)
    if not a.shape.is_fully_defined():
        return site
    inner = a.shape[front:]
    spread = tf.broadcast_to(a, tf.concat([tf.shape(outputs)[:1], inner], 0))
    spread = tf.ensure_shape(spread, [None, *inner])
    return site._replace(arguments=(spread, *site.arguments[1:]), outputs=outputs)


def _meeting(z):
    """What comes out where the numbers of z meet the examples, if they go nowhere else; or None."""
    while len(z.consumers()) == 1:
        (user,) = z.consumers()
        if user.type in _MEETS:
            return user.outputs[0]
        if user.inputs[0] is not z or not _only_reshapes(user):
            return None
        (z,) = user.outputs
    return None


def _only_reshapes(user):
    if user.type != "StridedSlice":
        return user.type in _SHAPES
    # Such as z[None]: nothing is cut off or turned around.
    steps, before = tf.get_static_value(user.inputs[3]), user.inputs[0].shape.num_elements()
    return steps is not None and all(steps == 1) and user.outputs[0].shape.num_elements() == before
