"""A separable convolution as the two layers that it is made of, each linear in its own weights."""

import contextlib
import threading
import weakref

import keras

from keras_influence import _keras

layers = keras.layers
_PARTS = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}
# A layer's halves, and the layer that a half is of; both live as long as the layer.
_halves = weakref.WeakKeyDictionary()
_owners = weakref.WeakKeyDictionary()


def in_parts(layer):
    """The depthwise and the pointwise half of a separable convolution; of another layer itself."""
    if type(layer) not in _PARTS or not layer.built:
        return (layer,)
    with _keras.lock:
        if layer not in _halves:
            _halves[layer] = _made(layer)
            _owners.update(dict.fromkeys(_halves[layer], weakref.ref(layer)))
        return _halves[layer]


def _made(layer):
    """Two layers that hold the very variables of a separable convolution."""
    depthwise, pointwise = _PARTS[type(layer)]
    options = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
    first = depthwise(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
        **options,
    )
    second = pointwise(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        name=f"{layer.name}_pointwise",
        **options,
    )
    first.kernel, first.bias = layer.depthwise_kernel, None
    second._kernel, second.bias = layer.pointwise_kernel, layer.bias
    first.built = second.built = True
    return first, second


@contextlib.contextmanager
def called_in_parts(parts, replaced):
    """Let the owners of these layers, as far as they are halves, call their halves meanwhile.

    Args:
        parts: layers from `in_parts`.
        replaced: a context manager that gives a layer another attribute.
    """
    owners = {owner for part in parts if part in _owners and (owner := _owners[part]()) is not None}
    with contextlib.ExitStack() as stack:
        for owner in owners:
            stack.enter_context(replaced(owner, call=_by_halves(owner)))
        yield


def _by_halves(owner):
    call, (first, second), thread = owner.call, _halves[owner], threading.get_ident()

    def by_halves(x):
        if threading.get_ident() != thread:  # Somebody else runs the model meanwhile.
            return call(x)
        return second.call(first.call(x))

    return by_halves
