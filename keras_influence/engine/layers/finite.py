"""Which example has a gradient that is not finite."""

import numpy as np

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.data.rows import split

# Examples whose gradients are held at once.
_TOGETHER = 16


def check_gradients(objective, batches, weight):
    """Raise a ValueError that names the first training example without a finite gradient, if there is one."""
    start = 0
    for batch in batches:
        for part in split(batch, _TOGETHER):
            refuse_bad(objective.example_gradients(part, weight).numpy(), start, "train")
            start += size_of(part)


def refuse_bad(rows, start, name):
    """Raise where a row, the gradient of an example or what is made of it, is not finite."""
    bad = np.flatnonzero(~np.isfinite(np.sum(rows, axis=1)))
    if bad.size:
        raise ValueError(
            f"The loss of example {start + bad[0]} of `{name}` has a gradient that is NaN or "
            "infinite. Is its label what the loss takes, and is there a square root or a logarithm "
            "of 0, or a mean over a mask that leaves nothing, as where an example is all padding?"
        )
