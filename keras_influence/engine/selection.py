"""Which weights count as θ: what `variables` means."""

import keras

from keras_influence import _keras


def select(model, variables):
    """The trainable weights of `model` that `variables` means, in the model's order.

    Args:
        variables: None for all; a layer or a list of layers and variables; or a
            function of a variable that returns a bool.

    Raises:
        TypeError: it is none of these.
        ValueError: it selects no trainable weight, or one of another model.
    """
    trainable = model.trainable_variables
    if variables is None:
        return trainable
    if callable(variables) and not isinstance(variables, keras.layers.Layer):
        chosen = [v for v in trainable if variables(v)]
    else:
        wanted = variables if isinstance(variables, (list, tuple)) else [variables]
        chosen = [v for item in wanted for v in _variables_of(item)]
        known = {id(v) for v in model.variables}
        foreign = [v.path for v in chosen if id(v) not in known]
        if foreign:
            raise ValueError(f"`variables` has weights that are not the model's: {foreign}")
        ids = {id(v) for v in chosen}
        chosen = [v for v in trainable if id(v) in ids]
    if not chosen:
        raise ValueError(
            "`variables` selects no trainable weight. The model's are: "
            f"{[v.path for v in trainable]}"
        )
    return chosen


def _variables_of(item):
    if isinstance(item, keras.layers.Layer):
        return item.trainable_variables
    if isinstance(item, _keras.Variable):
        return [item]
    raise TypeError(
        "`variables` should be a layer, a list of layers and variables, or a function of a "
        f"variable that returns a bool. Received: {type(item).__name__}"
    )
