"""What functions and objects do and read, in words that are the same in each process."""

from keras_influence.described.functions import described
from keras_influence.described.texts import ROUNDED
from keras_influence.described.values import Values, changed

__all__ = ["ROUNDED", "Values", "changed", "described"]
