"""How a model's loss is read on one data set, and what its terms are divided by, found out there.

Both are certified on examples from all of the data, against what Keras itself computes.
"""

import numpy as np

from keras_influence import _keras
from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.loss.added import what_is_added
from keras_influence.engine.loss.apart import certified_kinds, check_all, divisor
from keras_influence.engine.loss.custom import custom_reading
from keras_influence.engine.loss.facts import Facts
from keras_influence.engine.loss.looks import called
from keras_influence.engine.loss.readings import Compiled
from keras_influence.engine.loss.smooth import SMOOTH


def find_facts(model, batches, few, name, smooth, count):
    """`Facts` about a model's loss on its training data.

    Args:
        few: a few of its examples, from `looks.few_of`.
        name: the argument's name, for messages.
        smooth: let the smooth versions of the kinked losses stand in for them.
        count: a function of (reading, added) that gives the `counts` of the terms
            summed over all of the data, (terms, 3); only asked where they depend on the batch.

    Raises:
        ValueError: the data do not fit the loss, or one example's part in it cannot be told.
    """
    added = what_is_added(model, few, batches, name)
    found = check_loss(model, batches, few, name, added)
    if not _keras.has_default_loss(model):
        return Facts(found, added, batches.n, (found.total(batches.n),))
    reading = Compiled(tuple(SMOOTH.items()) if smooth else ())
    counts = _steady_counts(model, batches, few, name)
    if counts is None:
        counts = count(reading, added)
    divisors = [divisor(kind, c, batches.n) for kind, c in zip(found, counts)]
    return Facts(
        reading, added, batches.n, tuple(float(batches.n / d) if d else 0.0 for d in divisors)
    )


def check_loss(model, batches, few, name, added="nothing"):
    """Certify that a loss can be taken apart by example on these data.

    Returns:
        How: a reading of a `compute_loss` of the user's; of Keras's own what each term is
        divided by.

    Raises:
        ValueError: it cannot.
    """
    if not _keras.has_default_loss(model):
        check_all(model, batches, few, name)
        return custom_reading(model, batches, few, name)
    if added == "nothing" and not (_keras.has_compiled_loss(model) or _adds(model, few, name)):
        raise ValueError(
            "`model` should be compiled with a loss, `model.compile(loss=...)`, or add one in its "
            "layers by `add_loss`."
        )
    return certified_kinds(model, batches, few, name)


def _adds(model, few, name):
    with called(model, few, name):
        return bool(float(_keras.added_losses(model)))


def _steady_counts(model, batches, few, name):
    """What the divisors are made of, (terms, 3), or None where that depends on the batch."""
    with called(model, few, name) as (parts, y_pred):
        terms = Compiled().terms(model, parts, y_pred)
    counts = np.array([term.counts.numpy() for term in terms], np.float64).reshape(-1, 3)
    size = size_of(few)
    alike = batches.alike or (counts[:, 0] == size).all()
    if any(term.masked for term in terms) or not alike:
        return None
    return counts * (batches.n / size)
