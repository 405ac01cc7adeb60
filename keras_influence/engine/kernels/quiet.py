"""What TensorFlow says on the way to another way."""

import contextlib
import logging

import tensorflow as tf


@contextlib.contextmanager
def quiet():
    """What cannot be vectorised is no error of the user's: TensorFlow does not report it."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
