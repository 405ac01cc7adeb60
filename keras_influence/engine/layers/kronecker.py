"""The eigenvalue-corrected Kronecker factors of a network's Gauss-Newton matrix (EK-FAC).

A layer with weights W (K, O), inputs a and pseudo-gradients δ at its output adds Σ_t a_t δ_tᵀ
to the gradient of an example. With A = E[a aᵀ] = Q_A · Q_Aᵀ and S = E[δ δᵀ] = Q_S · Q_Sᵀ,
its block of the matrix is close to diagonal in the basis Q_A ⊗ Q_S, and the diagonal there
is measured: Λ = E[(Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)²] (George et al. 2018; Grosse et al. 2023, §2.2).
The bias is one more row of W, whose input is 1. Weights that act on one channel each have the
second moments of their gradients, channel by channel, and what is in no layer has its diagonal.

`PseudoGradients` give what all of this is made of; the sums are taken here.
"""

import dataclasses

import numpy as np

from keras_influence.engine.layers.pseudo_gradients import FEW, PseudoGradients
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.passes import total
from keras_influence.engine.passes.run import Run
from keras_influence.errors import NotFiniteError
from keras_influence.linalg.arrays import side_by_side, taking_turns


class Statistics:
    """Second moments of pseudo-gradients over a data set, and the blocks made of them.

    Args:
        ground: a `Ground`.
        batches: the training data, n examples.
        seed: of the pseudo-gradients.
        progress: as `Progress`, shows what takes long.
    """

    def __init__(self, ground, batches, seed, progress):
        self._ground, self._batches = ground, batches
        self._pseudo = ground.objective.made(PseudoGradients)
        self._seed, self._progress = seed, progress

    def blocks(self, pseudo_gradients, regulariser):
        """The blocks without damping, which cover all of θ.

        Args:
            pseudo_gradients: how many for each example.
            regulariser: (p,) diagonal of the regulariser's Hessian.

        Raises:
            NotFiniteError: some example has no finite gradient.
        """
        per_example = 1.0 / (self._batches.n * pseudo_gradients)
        n = self._batches.n
        title = f"Moments of the pseudo-gradients of {n} examples"
        found = self._sum("moments", pseudo_gradients, title)
        moments, rows = [arrays[:-1] for arrays in found], [arrays[-1] for arrays in found]
        parts, waiting = self._pseudo.parts, moments[::-1]
        known = (array for part, some in zip(parts, moments) for array in part.arrays(some))
        if not all(np.isfinite(array).all() for array in known):
            raise NotFiniteError("a gradient of the model's outputs")
        del found
        del moments
        shown = self._progress.over(parts, f"Eigenvectors of {len(parts)} blocks", len(parts))
        # Moments are let go of one by one: eigenvectors are as many numbers.
        blocks = [part.settled(waiting.pop(), per_example) for part in shown]
        squares = [[]] * len(blocks)
        if any(part.needs_squares for part in self._pseudo.parts):
            title = f"Squares of the pseudo-gradients of {n} examples"
            squares = self._sum("squares", pseudo_gradients, title, blocks)
        whole = n * pseudo_gradients
        return tuple(
            dataclasses.replace(
                part.measured(block, sums, per_example).with_diagonal(regulariser),
                by_example=part.by_example and bool(count == whole),
            )
            for part, block, sums, count in zip(self._pseudo.parts, blocks, squares, rows)
        )

    def coarse(self, blocks, chosen, pseudo_gradients, positions, regulariser):
        """The matrix in some of the blocks' coordinates, (R, R), estimated from some examples.

        Args:
            blocks: from `blocks`.
            chosen: which coordinates, in the order of the blocks, sorted.
            pseudo_gradients: how many for each example.
            positions: those of the examples.
            regulariser: as of `blocks`.
        """
        total = np.zeros((len(chosen), len(chosen)))
        some = self._batches.subset(positions).in_batches_of(self._batches.largest)
        starts = np.cumsum([0, *(block.eigenvalues.size for block in blocks)])
        edges = np.searchsorted(chosen, starts)
        mine = [chosen[a:b] - start for a, b, start in zip(edges, edges[1:], starts)]
        title = "Coupling of the largest directions"
        run = Run(self._progress.over(some, title, len(some)))
        with taking_turns():
            for raw in _each(self._ground, run, self._seed, pseudo_gradients):
                parts = zip(self._pseudo.parts, raw, blocks, mine)
                found = [part.coordinates(r, block, c) for part, r, block, c in parts if len(c)]
                entries = np.concatenate(found)
                for part in side_by_side(_overlaps, *np.array_split(entries, 2, axis=1)):
                    total += part
        total /= some.n * pseudo_gradients
        extra = np.concatenate([block.of_diagonal(regulariser).ravel() for block in blocks])
        return total + np.diag(extra[chosen])

    def _sum(self, statistic, pseudo_gradients, title, blocks=None):
        """The sum over all batches of a statistic of each part, a list of arrays a part."""
        step = self._progress.stage(title, len(self._batches))
        about = statistic, self._seed, pseudo_gradients, blocks
        sums = total(_statistics, self._ground, self._batches, *about, step=step)
        step.close()
        if not self._pseudo.parts:  # Other processes have seen the data, this one has not.
            few = self._batches.head(FEW)
            self._pseudo.of(few, self._ground.facts.train(), [self._seed, 0])
        return sums


def _statistics(ground, run, statistic, seed, pseudo_gradients, blocks):
    """A pass: the sum of "moments" or "squares" of each part, a list of arrays a part."""
    sums, pseudo = [], ground.objective.made(PseudoGradients)
    for raw in _each(ground, run, seed, pseudo_gradients):
        raw.reverse()
        # One part after another, in place: of all of them it would take as much again.
        for i, part in enumerate(pseudo.parts):
            if statistic == "moments":
                found = _moments_and_rows(part, raw.pop())
            else:
                found = part.squares(raw.pop(), blocks[i])
            if i == len(sums):
                sums.append(found)
            else:
                for known, new in zip(sums[i], found):
                    known += new
    return sums or None


def _overlaps(rows):
    return rows @ rows.T


def _each(ground, run, seed, pseudo_gradients):
    """The raw of each batch and sample."""
    pseudo, weight = ground.objective.made(PseudoGradients), ground.facts.train()
    for number, batch in enumerate(run, run.number):
        for sample in range(pseudo_gradients):
            with computing("train"):
                raw = pseudo.of(batch, weight, [seed + sample, number])
            yield raw


def _moments_and_rows(part, raw):
    """A part's moments, and how many examples it took the batch for, (1,)."""
    return [*part.moments(raw), np.array([sum(set(part.rows(raw)))])]
