"""Where in θ the entries of an array stand."""

import dataclasses

import numpy as np

from keras_influence.linalg.arrays import Array


@dataclasses.dataclass(frozen=True)
class Positions:
    """Positions in θ of an array's entries, which take no memory where they follow one another.

    Attributes:
        shape: of the array.
        first: where they begin, if they follow one another; else -1.
        others: all of them, if they do not.
    """

    shape: tuple[int, ...]
    first: int
    others: Array

    @classmethod
    def of(cls, array: Array) -> "Positions":
        """Those that an array of integers holds."""
        flat = array.ravel()
        if flat.size and (np.diff(flat) == 1).all():
            return cls(array.shape, int(flat[0]), np.zeros(0, np.int32))
        return cls(array.shape, -1, flat.astype(np.int32))

    @property
    def size(self) -> int:
        """How many they are."""
        return int(np.prod(self.shape))

    @property
    def where(self) -> slice | Array:
        """What takes them out of a vector."""
        return self.others if self.first < 0 else slice(self.first, self.first + self.size)

    @property
    def flat(self) -> "Positions":
        """The same of the array's entries one after another."""
        return dataclasses.replace(self, shape=(self.size,))

    @property
    def array(self) -> Array:
        """The positions themselves."""
        where = self.where
        found = np.arange(where.start, where.stop) if isinstance(where, slice) else where
        return found.reshape(self.shape)

    def taken(self, vectors: Array) -> Array:
        """The entries of (..., p) vectors, (..., *shape)."""
        return vectors[..., self.where].reshape(*vectors.shape[:-1], *self.shape)
