"""Compiled objectives that are kept from call to call, as long as they are right."""

import weakref

from keras_influence import _keras
from keras_influence.described import changed
from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.loss.looks import called, close, unit_of
from keras_influence.engine.passes import journey

# Compiled kernels live as long as the model and its compile state, and no longer.
_objectives = weakref.WeakKeyDictionary()


def objective_of(model, variables, reading, added):
    """The `Objective` of a model, with the kernels compiled in earlier calls.

    Args:
        model: a Keras model.
        variables: the trainable weights that are θ.
        reading, added: how its loss is read; see `facts.Facts`.
    """
    state = (_keras.loss_state(model), [id(v) for v in model.trainable_variables])
    values = _keras.values_of(model)
    known = _objectives.get(model)
    if known is None or known[0] != state or changed(known[1], values):
        known = _objectives[model] = (state, values, {})
        journey.forget(model)
    key = (reading, added, *(id(v) for v in variables))
    if key not in known[2]:
        known[2][key] = Objective(model, variables, reading, added)
    return known[2][key]


def check_fresh(objective, few, facts, name):
    """Have the kernels traced anew if they no longer give what the model gives.

    A loss, a layer or a regulariser may read what a trace has frozen: a global, an attribute. The losses of a
    few examples are compared, and apart from them, as they may be small beside them, what is
    there without any example and what layers add.

    Returns:
        These numbers, of the model itself, in the loss's unit.
    """
    weights = [facts.own(), facts.remainder()]
    if facts.adds:
        weights.append(facts.added_alone())
    with called(objective.model(), few, name) as (parts, y_pred):
        values = [float(value) for value in objective.values(parts, y_pred, weights)]
        unit = unit_of(parts, y_pred)
    pairs = [(objective.at_ones(few, w)[0], value) for w, value in zip(weights, values)]
    if not all(close(traced, value, unit=unit) for traced, value in pairs):
        objective.forget()
        journey.forget(objective.model())
        # For what it reads; see `variables_read`.
        objective.at_ones(few, weights[0])
    return [value / unit for value in values]
