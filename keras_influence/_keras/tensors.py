"""What Keras carries along with a tensor for its losses: logits and masks."""

_CARRIED = ("_keras_mask", "_keras_logits")


def logits_of(tensor):
    """The logits that a softmax or a sigmoid was made of, or None."""
    return getattr(tensor, "_keras_logits", None)


def mask_of(tensor):
    """Which steps of a sequence count, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_logits(tensor, logits):
    """Have a tensor carry these logits."""
    tensor._keras_logits = logits


def set_mask(tensor, mask):
    """Have a tensor carry this mask."""
    tensor._keras_mask = mask


def carried_by(tensor):
    """All that a tensor carries, by name."""
    return {name: value for name in _CARRIED if (value := getattr(tensor, name, None)) is not None}


def carry(tensor, carried):
    """Have a tensor carry what another does, as `carried_by` gives it."""
    for name, value in carried.items():
        setattr(tensor, name, value)
