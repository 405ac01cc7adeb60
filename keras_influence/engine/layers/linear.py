"""Keras's layers that are linear in their own weights, as they were built."""

import keras

_NAMES = (
    *("Dense", "EinsumDense", "Embedding"),
    *("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D"),
    *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    *("BatchNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"),
)
_LINEAR = tuple(getattr(keras.layers, name) for name in _NAMES)


def is_linear(layer):
    """Whether a layer is one of these: of the very class, without LoRA, and not quantised."""
    return (
        type(layer) in _LINEAR
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )
