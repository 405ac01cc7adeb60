"""The order in which training takes its examples, the same whenever it is asked for."""

import numpy as np
import tensorflow as tf

from keras_influence.engine.data import rows


class Order:
    """Batches of positions, drawn anew for each epoch from a seed.

    Args:
        n: number of examples.
        batch_size: examples in a batch; the last one of an epoch has what is left.
        seed: the order of epoch e is drawn from (seed, e) alone.
    """

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed = int(n), int(batch_size), int(seed)

    def __len__(self):
        """Batches in an epoch."""
        return -(-self.n // self.batch_size)

    def epoch(self, number):
        """The batches of one epoch, a list of (b,) arrays of positions."""
        order = np.random.default_rng([self.seed, number]).permutation(self.n)
        return np.split(order, range(self.batch_size, self.n, self.batch_size))


def in_epochs(whole, order, number):
    """The rows of `whole` as a `tf.data.Dataset` whose every pass is an epoch of `order`.

    Args:
        number: a function that says which epoch it is, asked when a pass begins.
    """

    def positions():
        yield from order.epoch(number())

    spec = tf.TensorSpec([None], tf.int64)
    data = tf.data.Dataset.from_generator(positions, output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(len(order)))
    return data.map(lambda where: rows.take(whole, where)).prefetch(2)
