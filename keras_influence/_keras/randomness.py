"""The states of TensorFlow's and Keras's own random generators."""

import contextlib

import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED
from tensorflow.python.eager import context as eager

_GENERATOR = "global_seed_generator"
_OF_KERAS = (GLOBAL_RANDOM_SEED, _GENERATOR)


@contextlib.contextmanager
def global_generators_kept():
    """Seeds set meanwhile by `keras.utils.set_random_seed` give way to those before.

    Operations that were given a seed of their own begin anew, as after any `tf.random.set_seed`.
    """
    of_keras = [global_state.get_global_attribute(name) for name in _OF_KERAS]
    context = eager.context()
    seed, generator = context._seed, getattr(context, "_rng", None)
    # Made anew where it is asked for: Keras 3.10 would go on with it after a new seed.
    global_state.set_global_attribute(_GENERATOR, None)
    try:
        yield
    finally:
        for name, value in zip(_OF_KERAS, of_keras):
            global_state.set_global_attribute(name, value)
        # Which clears what compiled operations have drawn with that seed meanwhile, too.
        tf.random.set_seed(seed)
        if generator is not None:
            context._rng = generator
