"""Layers that are not linear in their weights, as pieces that are: products with inputs of their own."""

import contextlib
import threading
import weakref

from keras_influence import _keras
from keras_influence.engine.layers import recurrent, separable, tied

# A layer's pieces, and the layer that a piece is of; both live as long as the layer.
_pieces = weakref.WeakKeyDictionary()
_owners = weakref.WeakKeyDictionary()
_KINDS = (separable, recurrent, tied)


def in_pieces(layer):
    """The layers, linear in their weights, that a layer is made of; of another one itself.

    They hold the very variables of the layer.
    """
    kind = _kind(layer)
    if kind is None or not layer.built:
        return (layer,)
    with _keras.lock:
        if layer not in _pieces:
            _pieces[layer] = kind.made(layer)
            _owners.update(dict.fromkeys(_pieces[layer], weakref.ref(layer)))
        return _pieces[layer]


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
    by_pieces = _kind(owner).called(owner, _pieces[owner], see)

    def called(*arguments, **keywords):
        if threading.get_ident() != thread:  # Somebody else runs the model meanwhile.
            return call(*arguments, **keywords)
        return by_pieces(*arguments, **keywords)

    return called
