"""The eigenvalue-corrected Kronecker factors of a network's Gauss-Newton matrix (EK-FAC).

A layer with weights W (K, O), inputs a and pseudo-gradients δ at its output adds Σ_t a_t δ_tᵀ
to the gradient of an example. With A = E[a aᵀ] = Q_A · Q_Aᵀ and S = E[δ δᵀ] = Q_S · Q_Sᵀ,
its block of the matrix is close to diagonal in the basis Q_A ⊗ Q_S, and the diagonal there
is measured: Λ = E[(Q_Aᵀ (Σ_t a_t δ_tᵀ) Q_S)²] (George et al. 2018; Grosse et al. 2023, §2.2).
The bias is one more row of W, whose input is 1. Weights that act on one channel each have the
second moments of their gradients, channel by channel, and what is in no layer has its diagonal.

One kernel gives what all of this is made of; the sums are taken outside of it.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_influence.engine.data.rows import size as size_of
from keras_influence.engine.kernels import primitives
from keras_influence.engine.kernels.kernel import Kernels, kernel
from keras_influence.engine.kernels.roots import tolerance
from keras_influence.engine.layers.gradient_part import GradientPart
from keras_influence.engine.layers.parts import parts_of
from keras_influence.engine.layers.pseudo import (
    contributed_signals,
    pseudo_signals,
    roots_of,
    strengths,
)
from keras_influence.engine.layers.sites import InnerCallError, known_layers
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.looks import computing
from keras_influence.engine.passes.passes import total
from keras_influence.engine.passes.run import Run
from keras_influence.errors import NotFiniteError
from keras_influence.linalg.arrays import taking_turns

# Examples on which the form of the outputs' curvature is looked for.
_FEW = 8


class PseudoGradients:
    """What pseudo-gradients say of each part of a network, from a kernel that is traced once.

    Args:
        objective: an `Objective`.

    Attributes:
        parts: of `parts`, known once a batch was asked for.
    """

    def __init__(self, objective):
        self._objective = objective
        self.parameters, self.kernels = objective.parameters, Kernels(Weighting, loop=True)
        self._hidden = set()
        self._roots = None
        self.parts = []

    def of(self, batch, weight, seed):
        """The `raw` of each part, for a batch with weighting and two integers."""
        return self._parted(self._raw, batch, weight, seed)

    def contributed(self, batch, weight, columns):
        """The same of `pseudo.contributed_signals`, for a column of each example's root."""
        return self._parted(self._contributed, batch, weight, columns)

    def strengths(self, batch, weight):
        """(b, q) squared norms of the columns of each example's root."""
        found, _ = self._with_roots(self._strengths, batch, weight)
        return found.numpy()

    def _parted(self, raw_of, batch, weight, about):
        try:
            *raw, _ = self._with_roots(raw_of, batch, weight, about)
        except InnerCallError as error:
            self._hide(error.layers)
            return self._parted(raw_of, batch, weight, about)
        count = size_of(batch)
        uneven = [part for part, r in zip(self.parts, raw) if _is_uneven(part, r, count)]
        if uneven:
            self._hide(layer.name for part in uneven for layer in part.layers)
            return self._parted(raw_of, batch, weight, about)
        return raw

    def _with_roots(self, kernel_of, batch, weight, *about):
        """What a kernel gives, the last of which is how far off the form of the roots is."""
        if self._roots is None:
            few = tf.nest.map_structure(lambda t: t[:_FEW], batch)
            self._roots = self._find_roots(few, weight)
        found = kernel_of(batch, weight, *about)
        if float(found[-1]) <= tolerance(self.parameters.dtype) * len(self._roots):
            return found
        # The forms were seen where the loss says nothing; what they are, these data tell.
        roots = self._find_roots(batch, weight)
        self._roots = roots if roots != self._roots else ("dense",) * len(roots)
        self.kernels.forget()
        return self._with_roots(kernel_of, batch, weight, *about)

    def _hide(self, layers):
        """Look at the network anew, without these layers."""
        self._hidden |= set(layers)
        self.parts = []
        self.kernels.forget()

    def _find_roots(self, batch, weight):
        with primitives.replaced():
            return roots_of(self._objective, batch, weight.tensors(self.parameters.dtype))

    @kernel("seed")
    def _raw(self, batch, weight, seed):
        found = pseudo_signals(self._objective, self._layers(), batch, weight, seed, self._roots)
        return self._of_parts(found)

    @kernel("columns")
    def _contributed(self, batch, weight, columns):
        about = batch, weight, columns, self._roots
        return self._of_parts(contributed_signals(self._objective, self._layers(), *about))

    @kernel()
    def _strengths(self, batch, weight):
        return strengths(self._objective, batch, weight, self._roots)

    def _layers(self):
        layers = known_layers(self._objective.model(), self.parameters.variables)
        return [layer for layer in layers if layer.name not in self._hidden]

    def _of_parts(self, found):
        if not self.parts:
            self.parts = parts_of(self.parameters, found)
        return [*(part.raw(self._objective, found) for part in self.parts), found.miss]


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
        if not all(np.isfinite(array).all() for arrays in moments for array in arrays):
            raise NotFiniteError("a gradient of the model's outputs")
        del found
        parts, waiting = self._pseudo.parts, moments[::-1]
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
                _with_extra(part.measured(block, sums, per_example), regulariser),
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
        starts = np.cumsum([0, *(block.positions.size for block in blocks)])
        edges = np.searchsorted(chosen, starts)
        mine = [chosen[a:b] - start for a, b, start in zip(edges, edges[1:], starts)]
        title = "Coupling of the largest directions"
        run = Run(self._progress.over(some, title, len(some)))
        with taking_turns():
            for raw in _each(self._ground, run, self._seed, pseudo_gradients):
                parts = zip(self._pseudo.parts, raw, blocks, mine)
                found = [part.coordinates(r, block, c) for part, r, block, c in parts if len(c)]
                entries = np.concatenate(found)
                total += entries @ entries.T
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
            few = self._batches.head(_FEW)
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
                for known, array in zip(sums[i], found):
                    np.add(known, array, out=known)
    return sums or None


def _each(ground, run, seed, pseudo_gradients):
    """The raw of each batch and sample."""
    pseudo, weight = ground.objective.made(PseudoGradients), ground.facts.train()
    for number, batch in enumerate(run, run.number):
        for sample in range(pseudo_gradients):
            with computing("train"):
                raw = pseudo.of(batch, weight, [seed + sample, number])
            yield raw


def _is_uneven(part, raw, count):
    """Whether a part's calls cannot stand side by side, or their rows should be examples and are not."""
    rows = set(part.rows(raw))
    return len(rows) > 1 or (isinstance(part, GradientPart) and rows != {count})


def _moments_and_rows(part, raw):
    """A part's moments, and how many examples it took the batch for, (1,)."""
    return [*part.moments(raw), np.array([sum(set(part.rows(raw)))])]


def _with_extra(block, regulariser):
    values = block.eigenvalues + block.of_diagonal(regulariser)
    return dataclasses.replace(block, eigenvalues=values.astype(block.eigenvalues.dtype))
