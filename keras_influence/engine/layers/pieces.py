"""Layers as the pieces that their weights are in.

Most layers are linear in their weights, and are their own piece. Others are made of layers that
are: products with inputs of their own. What is left is one piece, an `own.Own`.
"""

import contextlib
import threading
import weakref

from keras_influence import _keras
from keras_influence.engine.layers import own, recurrent, separable, tied
from keras_influence.engine.layers.linear import is_linear

# A layer's pieces, for the weights that it had; and the layer that a piece is of. Both live as
# long as the layer.
_pieces = weakref.WeakKeyDictionary()
_owners = weakref.WeakKeyDictionary()
# Each layer belongs to the first that covers it.
_KINDS = (separable, recurrent, tied, own)


def in_pieces(layer):
    """The layers that hold what weights a layer has besides its sublayers', or all of its weights.

    They hold the very variables of the layer. None where it has no such weights, or too many.
    """
    if is_linear(layer):
        return (layer,)
    kind = _kind(layer)
    if kind is None or not layer.built:
        return ()
    state = [id(v) for v in layer.trainable_variables]
    with _keras.lock:
        if layer not in _pieces or _pieces[layer][0] != state:
            pieces = kind.made(layer)
            _pieces[layer] = (state, pieces)
            _owners.update(dict.fromkeys(pieces, weakref.ref(layer)))
        return _pieces[layer][1]


def _kind(layer):
    return next((kind for kind in _KINDS if kind.covers(layer)), None)


@contextlib.contextmanager
def called_in_pieces(pieces, replaced, see):
    """Let the owners of these layers, as far as they are pieces, call their pieces meanwhile.

    Args:
        pieces: layers from `in_pieces`.
        replaced: a context manager that gives a layer another attribute.
        see: takes a piece that is not called by itself, what it would be given, and a tensor
            at which the loss has the gradient that it has at the piece's output.
    """
    owners = {o for piece in pieces if piece in _owners and (o := _owners[piece]())}
    with contextlib.ExitStack() as stack:
        for owner in owners:
            stack.enter_context(replaced(owner, call=_by_pieces(owner, see)))
        yield


def _by_pieces(owner, see):
    call, thread = owner.call, threading.get_ident()
    by_pieces = _kind(owner).called(owner, _pieces[owner][1], see)

    def called(*arguments, **keywords):
        if threading.get_ident() != thread:  # Somebody else runs the model meanwhile.
            return call(*arguments, **keywords)
        return by_pieces(*arguments, **keywords)

    return called
