"""Derivatives of TensorFlow's operations, where its own are wrong or missing, or waste much.

What a kernel computes forward is always TensorFlow's; only how it is differentiated is not.
TensorFlow keeps one function for each kind of operation that gives its gradient, and a second
derivative is the gradient of what that function computed. That of many rows times one matrix goes
the long way round, see `matrices`. Some others are wrong or missing:
those of the gradients of resizing and max pooling, of products at zeros, of `softsign`, of
labels that depend on weights, of determinants of singular matrices, of CTC losses. A gradient
is known by the kind of the operation, so it does not matter under which name a layer, a loss or
a user's own code came to it: `tf.nn.max_pool`, `tf.compat.v1.nn.max_pool`, a name bound long
ago. Four things are replaced as functions: `tf.nn.moments`, see `statistics`; what a
`tf.function` keeps of earlier derivatives, see `functions`; CTC losses, of whose inputs a tape
keeps none, see `ctc`; products in vectorised maps, see `maps`.

What is still wrong without a word, and caught only by comparing a product with differences of
gradients: segment products with several zeros, `FakeQuantWithMinMax…` (its gradient counts as
constant), cross-entropies of labels that do not sum to one, convolutions in more than 32 groups in a layer of the
user's own, with several vectors, and `ImageProjectiveTransform`
(TensorFlow's first derivative is not that of the value). Where a derivative is missing,
TensorFlow raises a LookupError that names the operation.

A new one: a function `gradient(original, op, *upstream)` in one of the modules, made of
operations whose own gradients are right, under its kind in their GRADIENTS, and a line in
`tests/engine/test_primitives.py`. Only those inputs and outputs of `op` are there that
TensorFlow's own gradient uses: the tape does not keep the others.
"""

from keras_influence.engine.kernels.primitives import (
    convolution,
    ctc,
    functions,
    maps,
    matrices,
    pooling,
    products,
    resizing,
    statistics,
)
from keras_influence.engine.kernels.primitives.scope import Scope

GRADIENTS = {
    **convolution.GRADIENTS,
    **matrices.GRADIENTS,
    **pooling.GRADIENTS,
    **products.GRADIENTS,
    **resizing.GRADIENTS,
    **statistics.GRADIENTS,
}

_scope = Scope(
    GRADIENTS,
    {**ctc.FUNCTIONS, **functions.FUNCTIONS, **maps.FUNCTIONS, **statistics.FUNCTIONS},
)


def replaced():
    """A context in which this thread, and no other, differentiates by `GRADIENTS`.

    Everything that takes a derivative belongs into it: the forward pass, and all tapes. It may
    be entered again inside itself and by several threads at once. Where no thread is in it,
    TensorFlow is as it was.
    """
    return _scope()
