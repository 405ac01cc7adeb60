"""What functions and objects do and read, in words that are the same in each process."""

from keras_influence.described.texts import ROUNDED
from keras_influence.described.values import Values, changed, described

__all__ = ["ROUNDED", "Values", "changed", "described"]
