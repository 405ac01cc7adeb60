"""A separable convolution as the two layers that it is made of, each linear in its own weights."""

import keras

from keras_influence import _keras

layers = keras.layers
_PARTS = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}


def covers(layer):
    """Whether a layer is one."""
    return type(layer) in _PARTS


def made(layer):
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
    first.built = True
    return first, _keras.holding(second, layer.pointwise_kernel, layer.bias)


def called(layer, pieces, see):
    """Its call by its pieces."""
    del layer, see
    first, second = pieces
    return lambda x: second.call(first.call(x))
