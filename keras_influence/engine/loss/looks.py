"""A few examples with their outputs, outside of kernels: what every certificate looks at."""

import contextlib
import contextvars
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import joined, layout, take
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.loss.forward import forward_of

# Examples that are looked at, drawn from all of the data.
FEW = 8
# Numbers that should be equal differ by no more than this, relative to their size.
TOLERANCE = 1e-3
# Outputs for a few examples that are held at most.
_HELD = 64
# What a model has put out for a few examples, by what they are, while nothing can change it.
_remembered = contextvars.ContextVar("remembered", default=None)


def few_of(batches, count=FEW):
    """A batch of a few examples from all of the data; of a single one, twice that one.

    Where examples are of several shapes, as many as there are of one.
    """
    few = max(batches.subset(spread(batches.n, count)), key=size_of)
    if size_of(few) < min(count, batches.n) and not batches.alike:
        largest = max(batches, key=size_of)
        if size_of(largest) > size_of(few):
            few = take(largest, spread(size_of(largest), count).tolist())
    return take(few, [0, 0]) if size_of(few) == 1 else few


def spread(size, count):
    """Positions of `count` of so many examples, at even distances."""
    return np.unique(np.linspace(0, size - 1, count).astype(int))


def beside(batch, few):
    """A batch; one of a single example with the few beside it, for alone it says nothing."""
    if size_of(batch) > 1:
        return batch
    if layout(batch) != layout(few):
        return take(batch, [0, 0])
    return joined([batch, few])


def halves(size):
    """The rows of the first and of the second half of a batch, at least two each."""
    half = max(2, size // 2)
    return list(range(half)), list(range(size - half, size))


@contextlib.contextmanager
def remembering(model):
    """A context in which the model is not called twice on the same few examples, unless asked to.

    A large one is called once, and on further examples by a `forward` that agrees with that. Both
    only where what all of its layers do is Keras's own: it leaves nothing behind.
    """
    plain = all(map(is_plain, _keras.layers_of(model)))
    token = _remembered.set(_Memory() if plain else None)
    try:
        yield
    finally:
        _remembered.reset(token)


@dataclasses.dataclass
class _Memory:
    """What is known of a model: outputs by what a few inputs hold, and a `forward` if it is worth one.

    `first` are the first inputs and outputs, until there is a forward to be held against them.
    """

    outputs: dict = dataclasses.field(default_factory=dict)
    first: tuple | None = None
    forward: object = None

    def keep(self, key, x, y_pred):
        if not self.outputs:
            self.first = x, y_pred
        if len(self.outputs) < _HELD:
            self.outputs[key] = y_pred

    def recall(self, model, key, x):
        """The outputs for x without a call of the model's layers one by one, or None."""
        if key is not None and key in self.outputs:
            return self.outputs[key]
        if self.first is not None:
            self.forward, self.first = forward_of(model, *self.first), None
        if self.forward is None:
            return None
        with contextlib.suppress(Exception):  # The model itself says what is wrong with x.
            return self.forward(x)
        return None


@contextlib.contextmanager
def called(model, batch, name="train", state=(), anew=False):
    """The batch as (x, y, w) and the model's output, in the scope in which it was called.

    Args:
        state: pairs of a variable and the value that it is to have.
        anew: call the model though its output may be remembered.

    Raises:
        ValueError: the data do not fit the model.
    """
    parts = keras.utils.unpack_x_y_sample_weight(batch)
    values = [*((v, v.value) for v in model.trainable_variables), *state]
    known = None if state else _remembered.get()
    # Of whole batches nothing is held.
    few = known is not None and size_of(batch) <= 2 * FEW
    key = _contents(parts[0]) if few else None
    with _keras.standing_at(model, values) as scope:
        y_pred = None if known is None or anew else known.recall(model, key, parts[0])
        if y_pred is None:
            try:
                y_pred = _keras.call_model(model, parts[0])
            except Exception as error:
                raise ValueError(
                    f"`{name}` does not fit the model's inputs: {error}{_hint(model)}"
                ) from error
        # What layers add belongs to the scope of the call.
        if key is not None and not scope.losses:
            known.keep(key, parts[0], y_pred)
        yield parts, y_pred


def is_plain(layer):
    """Whether a layer's call is Keras's own code throughout."""
    own = (getattr(type(layer), name).__module__ for name in ("call", "__call__"))
    return not isinstance(layer, keras.layers.Lambda) and all(m.startswith("keras.") for m in own)


def _contents(x):
    """What tells the inputs of a few examples from others; None where that is not plain numbers."""
    arrays = [t.numpy() for t in tf.nest.flatten(x)]
    if any(array.dtype.kind not in "fiub" for array in arrays):
        return None
    return (
        repr(tf.nest.map_structure(lambda t: (t.shape, t.dtype), x)),
        *(a.tobytes() for a in arrays),
    )


def _hint(model):
    """Why a model that `fit` could train may not be callable, as another sentence, or nothing."""
    trains = _keras.class_with_train_step(model)
    if trains:
        return (
            f"\nIt is called as `model(x)`, with x as in the data; {trains} has a "
            "`train_step` of its own, which may call it otherwise. Give it a `call` that takes the "
            "x of the data, and a `compute_loss`."
        )
    fixed = {t.shape[0] for t in _keras.inputs_of(model)} - {None}
    if fixed:
        return (
            f"\nThe model takes batches of {max(fixed)} examples alone; here it is asked about fewer and "
            "more. Build it anew for batches of any size (stateful=False), with the same weights."
        )
    if any(getattr(t, "sparse", False) for t in _keras.inputs_of(model)):
        return "\nSparse tensors are handed to it dense: its layers have to take both."
    return ""


def unit_of(parts, y_pred):
    """The size of a loss that is small beside its labels and outputs is rounding: of squares of these, 1 at most.

    In volts an electrode's are 1e-5, and losses of 1e-10 say all that there is to say.
    """
    leaves = [
        t for t in tf.nest.flatten((parts[1], y_pred)) if t is not None and t.dtype.is_floating
    ]
    largest = max((np.abs(t.numpy()).max(initial=0.0) for t in leaves), default=1.0)
    return min(1.0, float(largest) ** 2) or 1.0


def near(a, b, tolerance=TOLERANCE, unit=1.0):
    """Whether two arrays are equal up to rounding, which is that of numbers of the size of `unit`."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "fV":
        return np.array_equal(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = max(np.abs(a[np.isfinite(a)]).max(initial=0), 1e-6 * unit)
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def close(a, b, tolerance=TOLERANCE, unit=1.0):
    """The same of two numbers."""
    return abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-9 * unit
