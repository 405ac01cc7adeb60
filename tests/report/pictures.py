"""What the tests of pictures share: figures drawn in memory, and read again as pixels."""

import tensorflow as tf

from keras_influence.report import canvas


def pixels(figure):
    """The picture that is really drawn, (height, width, 3) uint8."""
    return tf.image.decode_png(canvas.png(figure), channels=3).numpy()


def is_in(picture, colour, tolerance=8):
    """Whether some pixel has this colour, given as "#rrggbb"."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((abs(picture.astype(int) - wanted).max(-1) <= tolerance).any())
