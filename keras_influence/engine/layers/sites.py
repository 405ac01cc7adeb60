"""What the layers of a network are given, and the loss's gradients at their outputs, for a batch.

Most layers are linear in their own weights w: z = f(a; w), with a the input and z the
output before the activation. All that the weights do to the loss then goes through z:

    ⟨∂ℓᵢ/∂w, s⟩ = ⟨f(aᵢ; s), δᵢ⟩        δᵢ = ∂ℓᵢ/∂zᵢ

    sites, deltas = signals(objective, known_layers(model, variables), batch, weight)
"""

import contextlib
import inspect
import threading
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.layers import own
from keras_influence.engine.layers.pieces import called_in_pieces, in_pieces
from keras_influence.engine.layers.shared_calls import with_examples

_STATISTICS = ("moving_mean", "moving_variance")


class Site(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: the layer.
        arguments: its positional arguments; the first is the input a.
        keywords: its keyword arguments.
        outputs: z, its output before the activation.
    """

    layer: keras.layers.Layer
    arguments: tuple
    keywords: dict
    outputs: tf.Tensor

    @property
    def inputs(self):
        """The input a, (b, ...)."""
        return self.arguments[0]


def known_layers(model, variables):
    """The layers of `model`, in pieces, whose calls give the gradients of some of `variables`.

    Weights of the model itself are left out, as its loss may depend on them in other ways.
    """
    known = {id(v) for v in variables}
    return [
        layer
        for whole in _keras.layers_of(model, itself=False)
        for layer in in_pieces(whole)
        if any(id(v) in known for v in weights_of(layer))
    ]


def weights_of(layer):
    """The weights of a piece, which its output depends on."""
    return [v for v in layer.variables if v.name not in _STATISTICS]


@contextlib.contextmanager
def recording(layers):
    """Collect a `Site` for each call of these layers; they are as before afterwards.

    Of a layer that is called once for all examples it tells afterwards what each of them has.
    """
    sites, wanted = [], set(layers)

    def see(layer, inputs, outputs):
        if layer in wanted:
            sites.append(Site(layer, (inputs,), {}, outputs))

    with contextlib.ExitStack() as stack:
        stack.enter_context(_keras.lock)
        stack.enter_context(called_in_pieces(layers, _replaced, see))
        for layer in layers:
            stack.enter_context(_recorded(layer, sites))
        yield sites
    sites[:] = [site for site in map(with_examples, sites) if not own.hides_examples(site)]


@contextlib.contextmanager
def recording_whole(layers):
    """The same with what each call gives, whatever that is, in place of z; no layer in pieces."""
    sites = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_keras.lock)
        for layer in layers:
            stack.enter_context(_recorded(layer, sites, whole=True))
        yield sites


def _recorded(layer, sites, whole=False):
    """`layer` with a `call` that adds to `sites`; its activation is where z is seen, if it is not `whole`."""
    call, activation = layer.call, None if whole else getattr(layer, "activation", None)
    seen, owner = [], threading.get_ident()

    def activate(z):
        seen.append(z)
        return activation(z)

    def recorded(*arguments, **keywords):
        if threading.get_ident() != owner:  # Somebody else runs the model meanwhile.
            return call(*arguments, **keywords)
        seen.clear()
        given = inspect.signature(call).bind(*arguments, **keywords)
        arguments, keywords = given.args, given.kwargs  # The input first, also where it was named.
        y = call(*arguments, **keywords)
        sites.append(Site(layer, arguments, keywords, seen[0] if seen else y))
        return y

    return _replaced(layer, call=recorded, **({"activation": activate} if activation else {}))


@contextlib.contextmanager
def _replaced(layer, **attributes):
    """An object with other attributes for a while. Keras must not track them, so in `__dict__`."""
    own = vars(layer)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                own[name] = before[name]
            else:
                del own[name]


def apply(site):
    """f(a; w) with the weights as they are in the scope now, without the activation."""
    layer = site.layer
    linear = {"activation": _identity} if getattr(layer, "activation", None) else {}
    with _keras.lock, _replaced(layer, **linear):
        return layer.call(*site.arguments, **site.keywords)


def _identity(z):
    return z


def signals(objective, layers, batch, weight):
    """What each of `layers` was given, and δᵢ = ∂ℓᵢ/∂zᵢ of each example, (b, ...).

    Args:
        objective: an `Objective`.
        layers: from `known_layers`.
        batch: a batch of tensors, eager or in a kernel.
        weight: the `Weighting` of the examples' losses.

    Returns:
        `(sites, deltas)`, two lists. A layer that was called twice has two sites.
        Regularisers are in no δ. Sites that the loss does not depend on are left out.

    Raises:
        InnerCallError: a layer is called inside a loop or a branch.
        ValueError: the outputs depend on some of the weights by another way too.
    """
    theta, omega = objective.parameters.tensors(), objective.ones(batch)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(theta)
        with objective.at(theta), recording(layers) as sites:
            model, parts, y_pred = objective.called(batch)
            loss = objective.reading.examples(model, parts, y_pred, omega, weight)
    if any(used_elsewhere(y_pred, theta, sites)):
        raise ValueError("some weights are used by other ways than a call of their layer")
    return gradients_at(tape, loss, sites)


class InnerCallError(ValueError):
    """A layer is called where its input and output cannot be seen from outside, or in its own way.

    Attributes:
        layers: the names of such layers.
    """

    def __init__(self, layers):
        self.layers = layers
        super().__init__(f"{', '.join(layers)} cannot be seen example by example")


def gradients_at(tape, target, sites):
    """The sites that a target depends on, and its gradients there."""
    check_outside(target, sites)
    found = tape.gradient(target, [site.outputs for site in sites])
    reached = [(s, tf.convert_to_tensor(g)) for s, g in zip(sites, found) if g is not None]
    return [s for s, _ in reached], [g for _, g in reached]


def check_outside(target, sites):
    """Raise an `InnerCallError` unless all sites are in the graph that a target is in."""
    here = _graph(tf.nest.flatten(target)[0])
    inside = sorted({site.layer.name for site in sites if _graph(site.outputs) is not here})
    if inside:
        raise InnerCallError(inside)


def used_elsewhere(targets, weights, sites):
    """For each tensor of `weights`, whether a target in a graph is made of it by another way than these calls."""
    given = [(site.arguments, site.keywords) for site in sites]
    waiting = [t for t in tf.nest.flatten([targets, given]) if tf.is_symbolic_tensor(t)]
    reached = {id(site.outputs) for site in sites}
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in reached:
            reached.add(id(tensor))
            # Neither a shape nor an index has a derivative.
            waiting += [t for t in tensor.op.inputs if t.dtype.is_floating]
    return [id(tensor) in reached for tensor in weights]


def _graph(tensor):
    return getattr(tensor, "graph", None) if tf.is_symbolic_tensor(tensor) else None
