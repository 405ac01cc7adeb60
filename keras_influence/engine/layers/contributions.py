"""The strongest contributions of single examples to the Gauss-Newton matrix, layer by layer.

The matrix is a sum of g gᵀ, with g = Jᵢᵀ b / √n for each column b of a root of ∂²ℓᵢ/∂y². How
strong they are is told by |b|² alone, which takes a forward pass; each that is taken is one backward
pass of its example.
"""

import numpy as np

from keras_influence.engine.data import rows
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.passes import each
from keras_influence.linalg.factors.rows import stacked

# Contributions from which it is told how much memory one takes; and bytes of those that are made at once.
_FEW, _TOGETHER = 4, 2**25


def contributions(ground, batches, most, nbytes, progress):
    """The strongest of them, as parts that together hold all weights that the outputs depend on.

    Args:
        ground: a `Ground`.
        batches: the training data.
        most: how many at most.
        nbytes: how many bytes they may take.
        progress: as `Progress`, shows what takes long.

    Returns:
        A tuple of `Rows`; none where the example gradients of some weights are not known: an
        inverse without what these have to do with the others can precondition worse than none.
    """
    places, columns = _strongest(ground, batches, most)
    few = _parts(ground, batches, places[:_FEW], columns[:_FEW], _FEW)
    if not few:
        return ()
    each_takes = sum(part.nbytes for part in few) / max(1, len(places[:_FEW]))
    count = max(1, min(len(places), int(nbytes / max(1.0, each_takes))))
    title = f"{count} contributions of single examples"
    together = max(1, int(min(batches.largest, _TOGETHER / max(1.0, each_takes))))
    return _parts(ground, batches, places[:count], columns[:count], together, progress, title)


def _strongest(ground, batches, most):
    """Positions of examples and columns of their roots, the strongest first."""
    found = [np.zeros(0), np.zeros(0, int), np.zeros(0, int)]
    for some in each(_strengths, ground, batches, most):
        joined = [np.concatenate(pair) for pair in zip(found, some)]
        found = [array[_largest(joined[0], most)] for array in joined]
    order = np.argsort(-found[0], kind="stable")
    return found[1][order], found[2][order]


def _strengths(ground, run, most):
    """A pass: the largest strengths of each batch, with their positions and columns."""
    pseudo, start = ground.objective.made(PseudoGradients), run.start
    for batch in run:
        with computing("train"):
            found = pseudo.strengths(batch, ground.facts.train())
        kept = _largest(found.ravel(), most)
        places, columns = np.divmod(kept, found.shape[1])
        yield found.ravel()[kept], start + places, columns
        start += len(found)


def _largest(values, most):
    """Places of the largest, without what is zero."""
    kept = (
        np.argpartition(-values, most - 1)[:most] if len(values) > most else np.arange(len(values))
    )
    return kept[values[kept] > 0]


def _parts(ground, batches, places, columns, together, progress=None, title=""):
    """The contributions of these columns, so many at a time, in no order that matters."""
    pseudo = ground.objective.made(PseudoGradients)
    distinct, of = np.unique(places, return_inverse=True)
    found = []
    held = batches.subset(distinct)
    step = None if progress is None else progress.stage(title, len(held))
    for number, (where, batch) in enumerate(held.enumerated(), 1):
        mine = np.flatnonzero((of >= where.start) & (of < where.stop))
        for start in range(0, len(mine), together):
            some = mine[start : start + together]
            with computing("train"):
                taken = rows.take(batch, of[some] - where.start)
                raw = pseudo.contributed(taken, ground.facts.train(), columns[some])
            found.append(known_rows(pseudo, raw, len(some)))
        if step:
            step(number)
    if step:
        step.close()
    by_part = list(zip(*found))
    del found
    if any(piece is None for pieces in by_part for piece in pieces):
        return ()
    stacks = []
    while by_part:  # Each part's pieces are let go of when they are one.
        stacks.append(stacked(by_part.pop(0)).times(1 / np.sqrt(batches.n)))
    return tuple(stacks)


def known_rows(pseudo, raw, count):
    """`Rows` of each part that has any; None where it does not know so many examples' gradients.

    Args:
        pseudo: the `PseudoGradients`.
        raw: what its `contributed` gave.
        count: of examples.
    """
    parts = [(part, r) for part, r in zip(pseudo.parts, raw) if not part.silent]
    known = [part.by_example and set(part.rows(r)) == {count} for part, r in parts]
    return [part.contributions(r) if k else None for (part, r), k in zip(parts, known)]
