"""Whether each example has an output of its own: right rows, no mixing in a batch, no chance."""

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import take
from keras_influence.engine.loss.looks import called, halves, near
from keras_influence.errors import see


def check_runs(model, few, name, chance=True):
    """Run the model on a few examples of the data, a batch, together and apart.

    Args:
        chance: whether it may still be random, as far as is known.

    Raises:
        ValueError: the data do not fit the model, or its outputs are random, or that of one
            example depends on the others in its batch.
    """
    size = size_of(few)
    outputs = _outputs(model, few, name)
    for leaf in outputs:
        if leaf.shape.rank == 0 or leaf.shape[0] != size:
            raise ValueError(
                f"`model` should give one output for each example of `{name}`, but for {size} "
                f"examples it gives an output of shape {tuple(leaf.shape)}. Rows that are merged "
                "or split in the model cannot be told apart: let one row be one example."
            )
    if chance:
        _check_chance(model, few, name, outputs)
    for rows in halves(size):
        apart = _outputs(model, take(few, rows), name)
        if not all(near(a.numpy()[rows], b.numpy()) for a, b in zip(outputs, apart)):
            raise ValueError(mixes_message(name))


def mixes_message(name):
    """What to say of a model that mixes examples."""
    return (
        "The model's output for an example depends on the other examples of its batch "
        f"(seen on `{name}`): some layer mixes the rows of a batch at training=False, so "
        f"the part of one example cannot be told. {see('mixed-examples')}"
    )


def _check_chance(model, few, name, outputs):
    """Raise if the outputs are random at training=False."""
    generators = [(layer, g) for layer in _keras.layers_of(model) for g in _generators(layer)]
    # A seed of its own may stay as it is from call to call.
    other_seeds = [(g.state, g.state.value + 1) for _, g in generators]
    again = _outputs(model, few, name, other_seeds, anew=True)
    if all(near(a.numpy(), b.numpy(), 1e-6) for a, b in zip(outputs, again)):
        return
    names = sorted({layer.name for layer, _ in generators})
    where = f" (layers with a random seed: {', '.join(names)})" if names else ""
    raise ValueError(
        f"`model` is random at training=False{where}: the same examples have other outputs at "
        "another call, so its loss has no derivative to ask for. Let dropout and noise depend "
        "on `training`, and a sampling layer give its mean where training is False. "
        f"{see('random-model')}"
    )


def _generators(layer):
    found = vars(layer).values()
    return [g for g in found if isinstance(g, keras.random.SeedGenerator)]


def _outputs(model, batch, name, state=(), anew=False):
    with called(model, batch, name, state, anew) as (_, y_pred):
        return tf.nest.flatten(y_pred)
