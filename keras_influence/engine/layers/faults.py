"""Examples for which layers or losses of the user's own have wrong derivatives.

In a product with the curvature examples are added up, and what is wrong for a few of them is small beside
the rest. But a layer f by itself takes each apart, whatever kinks other layers have. So what it does to
each row of its inputs a is held against differences, for random r like its outputs and d like a:

    ⟨r, f(a)⟩ along d                against  ⟨Jᵀr, d⟩                       for the Hessian
    ∂⟨r, f²⟩/∂a along d              against  (∂²⟨r, f²⟩/∂a²) d              for the Hessian
    ⟨r, J d⟩ as kernels compute it   against  ⟨Jᵀr, d⟩                       for Gauss-Newton
    ∂L/∂z along d, z the outputs     against  (∂²L/∂z²) d                    for both, of a loss

r is zero where the loss does not depend on an output, as where a mask leaves it out. A layer that takes
nothing that depends on θ may be wrong in that alone, as one that rounds the data: where it seems to be
wrong, the same is asked of its weights, with r zero for all other examples.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.missing import not_differentiable
from keras_influence.engine.layers import by_row
from keras_influence.engine.layers.calls import (
    Call,
    has_rows,
    is_fine,
    outputs_of,
    taken_by,
    with_others,
)
from keras_influence.engine.layers.sites import recording_whole
from keras_influence.engine.loss.looks import is_plain, spread

# Calls of one layer that are looked at, of a cell's for each step, and examples that weights are asked about.
_CALLS, _FEW = 8, 8
# What a fault is in where it is in no layer.
LOSS = "the loss"
# What layers hold that acts on weights alone.
_ON_WEIGHTS = (keras.Initializer, keras.regularizers.Regularizer, keras.constraints.Constraint)
_OF_OTHERS = ("keras", "tensorflow", "keras_influence", "builtins", "")
# What layers and losses may say to other tensors than those that the model gives them.
_REFUSALS = (ValueError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError)
_REFUSALS += (IndexError, KeyError, tf.errors.OpError)


def own_layers(model):
    """The layers that do what is not Keras's own code throughout; the model may be one."""
    return [layer for layer in _keras.layers_of(model) if not is_plain(layer) or _holds_own(layer)]


def has_own_loss(model):
    """Whether what the model minimises is not Keras's own code throughout."""
    return not (_keras.has_default_loss(model) and _keras.has_losses_of_keras(model))


def _holds_own(layer):
    """Whether a layer of Keras's holds a function of the user's, as an activation."""
    apart = (type, *_ON_WEIGHTS)
    held = [v for v in vars(layer).values() if callable(v) and not isinstance(v, apart)]
    modules = [getattr(v, "__module__", None) or "" for v in held]
    return any(module.partition(".")[0] not in _OF_OTHERS for module in modules)


class Faults:
    """What to look for in a model and its loss, at its weights as they are.

    Args:
        objective: an `Objective`.
        few: a few examples, as a batch.
        differences: whether it is for the Hessian, and not for Gauss-Newton.

    Attributes:
        held_in_loss: whether, for Gauss-Newton, the loss of some examples had another slope than its
            derivative says, as where part of it is held for constant.
    """

    def __init__(self, objective, few, differences):
        self._objective, self._differences = objective, differences
        self._layers = own_layers(objective.model())
        self._own_loss = has_own_loss(objective.model())
        self._moving = self._asked(self._moved, few) or {}
        self.held_in_loss = False

    def find(self, batch):
        """Where derivatives are wrong for some examples of a batch, in words; None if nowhere.

        Raises:
            NotDifferentiableError: TensorFlow has none.
        """
        standing = self._objective.at(self._objective.parameters.tensors())
        # Squares of what is finite may not be: then nothing is said.
        with primitives.replaced(), standing, np.errstate(over="ignore", invalid="ignore"):
            sites, deltas, about = self._asked(self._signals, batch) or ([], [], ())
            if self._own_loss and about and self._asked(_is_wrong_for_loss, *about):
                if self._differences:
                    return LOSS
                self.held_in_loss = True
            for site, delta in zip(sites, deltas):
                if self._asked(self._is_wrong, site, delta):
                    return f"the layer {site.layer.path}"
        return None

    def _asked(self, look, *about):
        """What a look finds; None where it cannot be had, as of what takes nothing but what the model gives it.

        Raises:
            NotDifferentiableError: TensorFlow has no derivative.
        """
        try:
            with contextlib.suppress(*_REFUSALS):
                return look(*about)
        except LookupError as error:
            raise not_differentiable(error, self._differences) from error
        return None

    def _is_wrong(self, site, delta):
        call, rng = Call(site, delta), np.random.default_rng(0)
        moving = self._moving.get(_kind(site), [])
        places = [i for i in call.places if any(moving[i : i + 1])]
        # Copies: of a tensor that is given twice, as to attention, a tape gives both places the sum of both slopes.
        at, r = [tf.identity(call.given[i]) for i in places or call.places], call.random(rng)
        if not (at and r):
            return False
        rows = self._wrong(lambda at: call(places or call.places, at), at, r, rng)
        return bool(rows.size) and (bool(places) or self._is_wrong_in_weights(call, r, rows, rng))

    def _is_wrong_in_weights(self, call, r, rows, rng):
        """The same, for some rows, of the layer as a function of its weights, which are one row."""
        chosen = {id(v) for v in self._objective.parameters.variables}
        own = [v for v in call.site.layer.trainable_variables if id(v) in chosen]
        own = [v for v in own if is_fine(v.value)]
        some = rows[:_FEW]

        def function(at):
            with self._objective.with_values([(v, t[0]) for v, t in zip(own, at)]):
                outputs = call([], [])
            return [tf.reshape(tf.gather(f, some), [1, -1]) for f in outputs]

        at, r = [v.value[None] for v in own], [tf.reshape(tf.gather(e, some), [1, -1]) for e in r]
        return bool(own) and bool(self._wrong(function, at, r, rng).size)

    def _wrong(self, function, at, r, rng):
        def squares(at):
            return sum(tf.reduce_sum(f**2 * e) for f, e in zip(function(at), r))

        def along(d):
            if not self._differences:
                return by_row.wrong_transpose(function, at, r, d)
            rows = by_row.wrong_values(function, at, r, d)
            return rows if rows.size else by_row.wrong_slopes(squares, at, d)

        return by_row.wrong_each_time(along, rng, at)

    def _signals(self, batch):
        """The sites, the loss's gradients at what they give, and what the loss is computed of."""
        theta = self._objective.parameters.tensors()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            with self._objective.at(theta), recording_whole(self._layers) as sites:
                model, parts, y_pred = self._objective.called(batch)
                loss = _loss(model, parts, y_pred)
        sites = _some(sites)
        outputs = [outputs_of(site.outputs) for site in sites]
        return sites, tape.gradient(loss, outputs), (model, parts, y_pred)

    def _moved(self, few):
        """For each kind of call whether each of the tensors that it takes depends on θ."""
        theta, rng = self._objective.parameters.tensors(), np.random.default_rng(0)
        other = [t + 0.1 * e for t, e in zip(theta, by_row.drawn(rng, theta))]
        seen, moving = [], {}
        for values in (theta, other):
            standing = self._objective.at(values)
            with primitives.replaced(), standing, recording_whole(self._layers) as sites:
                self._objective.called(few)
            seen.append(_some(sites))
        for site, again in zip(*seen):
            pairs = zip(taken_by(site), taken_by(again))
            found = [has_rows(a) and not np.array_equal(a, b) for a, b in pairs]
            known = moving.setdefault(_kind(site), found)
            moving[_kind(site)] = [a or b for a, b in zip(known, found)]
        return moving


def _is_wrong_for_loss(model, parts, y_pred):
    """Whether for some rows of outputs the loss has another second derivative than differences show."""
    leaves = tf.nest.flatten(y_pred)
    places = [i for i, t in enumerate(leaves) if has_rows(t)]
    at = [tf.stop_gradient(leaves[i]) for i in places]

    def loss(at):
        held = with_others(leaves, places, at)
        return _loss(model, parts, tf.nest.pack_sequence_as(y_pred, held))

    rng = np.random.default_rng(0)
    rows = by_row.wrong_each_time(lambda d: by_row.wrong_slopes(loss, at, d), rng, at)
    return bool(rows.size)


def _loss(model, parts, y_pred):
    x, y, w = parts
    return _keras.compute_loss(model, x, y, y_pred, w)


def _some(sites):
    """Of each layer so many calls at most."""
    calls = {}
    for site in sites:
        calls.setdefault(id(site.layer), []).append(site)
    return [some[i] for some in calls.values() for i in spread(len(some), _CALLS)]


def _kind(site):
    return id(site.layer), len(taken_by(site))
