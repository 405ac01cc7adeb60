"""How much memory a model takes for each example, and so how many examples go together."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.layers.own import Own
from keras_influence.engine.layers.pieces import in_pieces
from keras_influence.engine.layers.sites import recording
from keras_influence.engine.loss.looks import called

# Bytes of what all layers put out for a batch. A kernel keeps several times as much: what tapes
# remember, gradients, and the same for each of the vectors that go together.
_BATCH = 2**25
_VECTORS = 2**29
# Gradients of single examples that have to be formed are fewer arrays: they may take so many times
# as much.
_FORMED = 7
# Fewer examples than this waste a processor, and there are no more than are ever asked for.
_LEAST, _MOST = 16, 2**14
# Vectors that share a batch's forward and backward: no more numbers together than this, or they
# leave the processor's cache, but for so many; and fewer of vectors that are so long that a kernel's
# copies of them take more than the rest of it. These are slow enough one by one.
_NUMBERS, _FEWEST, _WIDEST, _LONG = 2**20, 8, 128, 2**23

# Cells with several columns of their kernels for each number that they put out.
_GATED = (keras.layers.LSTMCell, keras.layers.GRUCell)


class Footprint(NamedTuple):
    """What one example takes.

    Attributes:
        numbers: how many all layers put out.
        moving: how many of these a change of weights may change.
        work: multiplications of a forward pass.
        outputs: how many numbers the model puts out.
    """

    numbers: int
    moving: int
    work: float
    outputs: int


def footprint_of(model, few, name="train"):
    """The `Footprint` of an example, as seen on a few; `name` is what messages call the data."""
    leaves = _keras.leaves_of(model)
    with recording(leaves) as sites, called(model, few, name, anew=True) as (_, y_pred):
        outputs = sum(map(_size, tf.nest.flatten(y_pred)))
    count = size_of(few)
    sizes = [max(_size(site.outputs), _patches(site)) for site in sites]
    first = next((i for i, site in enumerate(sites) if site.layer.weights), 0)
    formed = count * _own_weights(model) // _FORMED
    numbers, moving = (max(sum(some), formed) for some in (sizes, sizes[first:]))
    work = sum(map(_work, sites)) / count
    each = (max(1, total // count) for total in (numbers, moving))
    return Footprint(*each, work, max(1, outputs // count))


def examples_together(numbers, itemsize, least=_LEAST):
    """Examples in a batch, where each has so many numbers; `least` of them in any case."""
    return int(np.clip(_BATCH // (numbers * itemsize), least, _MOST))


def vectors_together(moving, itemsize, count, size):
    """Vectors of `size` numbers that are taken through a batch of `count` examples at once."""
    fitting = _VECTORS // (moving * itemsize * count)
    cached = max(1, min(_FEWEST, _LONG // size), _NUMBERS // size)
    return int(np.clip(fitting, 1, min(cached, _WIDEST)))


def _own_weights(model):
    """How many weights have gradients that are formed for each example."""
    layers = _keras.layers_of(model, itself=False)
    pieces = [piece for layer in layers for piece in in_pieces(layer) if isinstance(piece, Own)]
    return sum(int(np.prod(v.shape)) for piece in pieces for v in piece.owned)


def _size(output):
    tensors = output if isinstance(output, (list, tuple)) else [output]
    return sum(int(np.prod([d or 1 for d in t.shape])) for t in tensors if hasattr(t, "shape"))


def _work(site):
    """Each weight meets each position of the output; an embedding only looks its rows up."""
    size = _size(site.outputs)
    if isinstance(site.layer, keras.layers.Embedding) or not site.layer.weights:
        return size
    width = max(int(np.prod(w.shape[-1:])) for w in site.layer.weights)
    if isinstance(site.layer, _GATED):
        width = site.layer.units
    return max(size, size // width * sum(int(np.prod(w.shape)) for w in site.layer.weights))


def _patches(site):
    """Numbers in the patches of a convolution's input, from which example gradients are formed."""
    kernel = getattr(site.layer, "kernel", None)
    if (
        "Conv" not in type(site.layer).__name__
        or kernel is None
        or not hasattr(site.outputs, "shape")
    ):
        return 0
    reach = int(np.prod(kernel.shape[:-1]))
    return _size(site.outputs) // int(site.outputs.shape[-1] or 1) * reach
