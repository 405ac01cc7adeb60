"""How many examples there are in a batch."""

import tensorflow as tf


def batch_size(batch):
    """Number of examples in a batch of eager tensors."""
    return int(tf.nest.flatten(batch)[0].shape[0])
