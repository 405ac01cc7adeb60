"""Models that many tests ask about: made once, so that what is compiled for them is compiled once."""

import functools

import keras

_kept, _lent = {}, {}


def pooled(make):
    """A function that makes a model, with models of earlier tests in place of new ones.

    A test is given weights and random state as if the model were new, and as many models as it asks for.
    What was trained, compiled anew or frozen is not given to another test. `make.fresh` makes a new one, for
    tests that count what is compiled and for fixtures of more than a test.
    """

    @functools.wraps(make)
    def lend(*args, **options):
        new = make(*args, **options)
        policy = keras.config.dtype_policy().name
        key = (make, args, tuple(sorted(options.items())), keras.config.floatx(), policy)
        number = _lent[key] = _lent.get(key, -1) + 1
        model, state = _kept.get((key, number), (None, None))
        if model is None or _state(model) != state:
            _kept[key, number] = new, _state(new)
            return new
        model.set_weights(new.get_weights())
        return model

    lend.fresh = make
    return lend


def take_back():
    """At the end of a test: what it was lent may be lent again."""
    _lent.clear()


def _state(model):
    variables = model.trainable_variables
    parts = [model.optimizer, model.loss, *model.layers, *variables]
    regularisers = [repr(v.regularizer and v.regularizer.get_config()) for v in variables]
    return [model.optimizer.built, model.trainable, *map(id, parts), *regularisers]
