"""The parameters θ: a list of variables on one side, a flat vector on the other.

This is the only place that flattens.
"""

import numpy as np
import tensorflow as tf


class Parameters:
    """The variables that count as θ, in a fixed order, with flat size `size` (p).

    Args:
        variables: list of Keras variables.
    """

    def __init__(self, variables):
        self.variables = list(variables)
        self._indices = {id(v): i for i, v in enumerate(self.variables)}
        self.shapes = [tuple(v.shape) for v in self.variables]
        self.sizes = [int(np.prod(s, dtype=np.int64)) for s in self.shapes]
        self._ends = np.cumsum(self.sizes).tolist()
        self.size = sum(self.sizes)
        self.dtype = tf.as_dtype(np.result_type(*[_numpy_dtype(v) for v in self.variables]))

    def index(self, variable):
        """The place of a variable among `variables`, or None if it is no part of θ."""
        return self._indices.get(id(variable))

    def part(self, variable):
        """The slice of θ that a variable is, or None if it is no part of it."""
        i = self.index(variable)
        return None if i is None else slice(self._ends[i] - self.sizes[i], self._ends[i])

    def positions(self, variable):
        """The positions in θ of a variable's entries, in its shape; None if it is no part of θ."""
        part = self.part(variable)
        return None if part is None else np.arange(part.start, part.stop).reshape(variable.shape)

    def tensors(self):
        """The values of the variables now, for a `tf.GradientTape` to watch."""
        return [tf.convert_to_tensor(v.value) for v in self.variables]

    def shifted(self, vector):
        """The values of the variables now, plus a (p,) tensor."""
        parts = tf.split(vector, self.sizes)
        pairs = zip(self.tensors(), parts)
        return [t + tf.cast(tf.reshape(part, t.shape), t.dtype) for t, part in pairs]

    def cut(self, vector):
        """A (p,) tensor as tensors in the shapes and dtypes of the variables."""
        pairs = zip(self.variables, tf.split(vector, self.sizes))
        return [tf.cast(tf.reshape(part, v.shape), v.dtype) for v, part in pairs]

    def flatten(self, gradients):
        """Join per-variable tensors into one (p,) tensor; None counts as zero."""
        return tf.concat([self._dense(g, n) for g, n in zip(gradients, self.sizes)], axis=0)

    def _dense(self, gradient, size):
        if gradient is None:
            return tf.zeros([size], self.dtype)
        # Embedding gradients are IndexedSlices, which convert to a dense tensor.
        return tf.cast(tf.reshape(tf.convert_to_tensor(gradient), [-1]), self.dtype)

    def as_rows(self, v, name="v"):
        """Read a user's `v` as (k, p) rows, and return the way back.

        Args:
            v: (p,) vector, (p, k) matrix, or list aligned with the variables.
            name: the argument's name, for messages.

        Returns:
            `(rows, restore)`: the array, and a function that gives a (k, p)
            result the form that `v` had.

        Raises:
            TypeError: `v` is not numeric.
            ValueError: its shape or structure does not fit, or it is not finite.
        """
        if isinstance(v, (list, tuple)):
            return self._list_row(v, name), lambda rows: self.split(rows[0])
        array = as_numeric_array(v, name, self.dtype.as_numpy_dtype)
        if array.ndim not in (1, 2) or array.shape[0] != self.size or 0 in array.shape:
            raise ValueError(
                f"`{name}` should be a vector of shape ({self.size},), a matrix of shape "
                f"({self.size}, k), or a list of {len(self.shapes)} arrays aligned with "
                f"`trainable_variables`. Received: {name} with shape {array.shape}"
            )
        if array.ndim == 1:
            return array[None], lambda rows: rows[0]
        return array.T, lambda rows: rows.T

    def _list_row(self, v, name):
        if len(v) != len(self.shapes):
            raise ValueError(
                f"`{name}`, given as a list, should have {len(self.shapes)} arrays, one for each "
                f"of `trainable_variables`. Received: {len(v)}"
            )
        parts = []
        for i, (part, shape) in enumerate(zip(v, self.shapes)):
            array = as_numeric_array(part, f"{name}[{i}]", self.dtype.as_numpy_dtype)
            if array.shape != shape:
                raise ValueError(
                    f"`{name}[{i}]` should have shape {shape}, as `trainable_variables[{i}]`. "
                    f"Received: shape {array.shape}"
                )
            parts.append(array.reshape(-1))
        return np.concatenate(parts)[None]

    def split(self, vector):
        """Cut a (p,) array into a list of arrays shaped like the variables."""
        parts = np.split(np.asarray(vector), np.cumsum(self.sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes)]


def as_numeric_array(value, name, dtype):
    """`value` as a finite float array, or an error that names the argument."""
    try:
        array = np.asarray(value)
        numeric = array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"
        array = array.astype(dtype) if numeric else None
    except (TypeError, ValueError):
        array = None
    if array is None:
        raise TypeError(f"`{name}` should be a numeric array. Received: {type(value).__name__}")
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` should be finite, but it has NaN or infinite entries.")
    return array


def _numpy_dtype(variable):
    return tf.as_dtype(variable.dtype).as_numpy_dtype
