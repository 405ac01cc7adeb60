"""The Gauss-Newton matrix written out, from what the layers of single examples are given and send back.

It is the sum of g gᵀ over all contributions of examples, see `contributions`: one backward pass for each
column of their roots, and products of few large matrices, where products with p unit vectors would be
p passes.
"""

import numpy as np

from keras_influence.engine.data import rows
from keras_influence.engine.layers.contributions import known_rows
from keras_influence.engine.layers.footprint import examples_together
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.passes import each
from keras_influence.linalg.factors.assembly import Assembly

# Numbers in the contributions that are held at once.
_NUMBERS = 2**25


def assembled(ground, batches, footprint, numbers, progress):
    """n times the (p, p) matrix without what is there without any example, float64; and the passes it took.

    Args:
        ground: a `Ground`.
        batches: the training data, in this process.
        footprint: what one example takes, `Footprint`.
        numbers: in the contributions of one example.
        progress: as `Progress`, shows what takes long.

    Returns:
        `(matrix, passes)`; None in place of the matrix where some weights' example gradients are not known.
    """
    assembly, passes = Assembly(), 0.0
    step = progress.stage(f"Contributions of {batches.n} examples", len(batches))
    held = max(1, int(_NUMBERS // numbers))
    together = examples_together(footprint.numbers, ground.objective.parameters.dtype.size)
    about = assembly, held, together
    for number, count in enumerate(each(_added, ground, batches, *about), 1):
        if count is None:
            return None, passes
        passes += count / batches.n
        step(number)
    step.close()
    return assembly.written_out(ground.objective.parameters.size), passes


def _added(ground, run, assembly, held, together):
    """A pass that adds to the assembly: how many contributions each batch has; None if they are not known.

    Args:
        held: examples all of whose contributions are held at once.
        together: examples that go through the network at once.
    """
    pseudo = ground.objective.made(PseudoGradients)
    for batch in run:
        with computing("train"):
            strengths = pseudo.strengths(batch, ground.facts.train())
        columns = np.flatnonzero(strengths.any(0))
        for start in range(0, len(strengths), held):
            places = np.arange(start, min(start + held, len(strengths)))
            some = batch if len(places) == len(strengths) else rows.take(batch, places)
            found = _columns(ground, some, columns, together)
            if found is None or not assembly.add(found):
                yield None
                return
        yield len(columns) * len(strengths)


def _columns(ground, batch, columns, together):
    """Contributions of some columns of each example's root, a `Rows` for each part of each; None if not known."""
    pseudo, count, found = ground.objective.made(PseudoGradients), rows.size(batch), []
    width = max(1, together // count)
    for some in (columns[i : i + width] for i in range(0, len(columns), width)):
        # Of a few examples many columns take hardly longer than one.
        tiled = rows.take(batch, np.tile(np.arange(count), len(some))) if len(some) > 1 else batch
        with computing("train"):
            raw = pseudo.contributed(tiled, ground.facts.train(), np.repeat(some, count))
        parts = known_rows(pseudo, raw, count * len(some))
        if any(part is None for part in parts):
            return None
        for pieces in zip(*(part.parted(len(some)) for part in parts)):
            # The inputs are those of the first.
            found.append([p.beside(first) for p, first in zip(pieces, (found or [pieces])[0])])
    return found
