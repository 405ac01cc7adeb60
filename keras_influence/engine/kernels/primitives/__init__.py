"""Derivatives of TensorFlow's operations, where its own are wrong or missing.

What a kernel computes forward is always TensorFlow's; only how it is differentiated is
not. TensorFlow keeps one function for each kind of operation that gives its gradient, and
a second derivative is the gradient of what that function computed. Some of these are wrong
or missing: those of the gradients of resizing and max pooling, of products at zeros, of
`softsign`, of soft labels, of determinants of singular matrices. A gradient is known by the
kind of the operation, so it does not matter under which name a layer, a loss or a user's own
code came to it: `tf.nn.max_pool`, `tf.compat.v1.nn.max_pool`, a name bound long ago.

The one exception is `tf.nn.moments`, see `statistics`.

Not covered: README of the tests in `tests/engine/test_primitives.py`.
"""

from keras_influence.engine.kernels.primitives import (
    convolution,
    pooling,
    products,
    resizing,
    statistics,
)
from keras_influence.engine.kernels.primitives.scope import Scope

GRADIENTS = {
    **convolution.GRADIENTS,
    **pooling.GRADIENTS,
    **products.GRADIENTS,
    **resizing.GRADIENTS,
    **statistics.GRADIENTS,
}

_scope = Scope(GRADIENTS, statistics.FUNCTIONS)


def replaced(many=False):
    """A context in which this thread, and no other, differentiates by `GRADIENTS`.

    Everything that takes a derivative belongs into it: the forward pass, and all tapes. It may
    be entered again inside itself and by several threads at once. Where no thread is in it,
    TensorFlow is as it was.

    Args:
        many: of no effect; whether many vectors share one forward pass used to matter.
    """
    return _scope()
