"""What is asked of a model over data: sums, and results of single examples, batch after batch."""

import numpy as np

from keras_influence.engine.kernels.targets import Targets, check_finite, check_target
from keras_influence.engine.kernels.whole_set import WholeSet, value_of_set
from keras_influence.engine.layers.scoring import Scorer
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.ground import Ground
from keras_influence.engine.passes.passes import each, total


class Summing:
    """Losses, outputs, gradients and scores of a model whose loss is known on its training data.

    Subclasses find that out, and have a few of the data, `_few`, on which kernels are certified.

    Attributes:
        objective: the compiled loss with all derivatives, batch by batch.
        parameters: θ, as `Parameters`.
        facts: what holds for the loss on the training data, `Facts`.
        train: these, as `Batches`.
        n: how many they are.
        progress: shows what takes long.
    """

    # ---- values and first derivatives

    def losses(self, batches, name="train"):
        """ℓ of each example, (n,) float64, weighted and with what layers add, not regularised."""
        with computing(name):
            parts = list(each(_losses, self._ground, batches, self.facts.own()))
        return np.concatenate(parts).astype(np.float64)

    def outputs(self, batches, target=None, name="test"):
        """What is asked of examples, float64: ℓ or `target` of each, (n,); of a `WholeSet` one number, (1,)."""
        if target is None:
            return self.losses(batches, name)
        if isinstance(target, WholeSet):
            return np.array([value_of_set(self.objective, batches, target)])
        parts = [self.objective.made(Targets).values(batch, target) for batch in batches]
        return np.concatenate([np.ravel(part).astype(np.float64) for part in parts])

    def gradient(self, batches):
        """(1/n) Σ ∇ℓ over some of the training examples, (p,) float64: their share of ∇L."""
        weight = self.facts.examples()
        with computing("train"):
            return total(_values_and_gradients, self._ground, batches, weight)[1:] / self.n

    def value_and_gradient(self, left_out=()):
        """L and ∇L without the training examples of `left_out`, n unchanged."""
        with computing("train"):
            found = total(_values_and_gradients, self._ground, self.train, self.facts.train())
        value, gradient = found[0], found[1:]
        for batch in left_out:
            part, slope = self.objective.at_ones(batch, self.facts.examples())
            value, gradient = value - part, gradient - slope
        return value / self.n, gradient / self.n

    def example_gradients(self, batches, target=None):
        """∇ℓ of each example, or ∇target, (n, p).

        Raises:
            ValueError, TypeError: `target` does not give one number for each example.
        """
        shown = self.progress.over(batches, f"Gradients of {batches.n} examples", len(batches))
        return np.concatenate(list(self.gradients_by_batch(shown, batches, target)))

    def gradients_by_batch(self, shown, batches, target=None, name="test", start=0):
        """`example_gradients` batch after batch, for `shown` of `batches`, from `start` on."""
        own = self.facts.own()
        if target is not None:
            check_target(target, self.objective, batches, own)
            targets = self.objective.made(Targets)
            for batch in shown:
                rows = targets.with_gradients(batch, own).numpy()[:, 1:]
                check_finite(rows, start, name)
                start += len(rows)
                yield rows
            return
        scorer = self.scorer(own, name, start=start)
        for batch in shown:
            yield scorer.gradients(batch)

    def scorer(self, weight, name, start=0):
        """A `Scorer` of example gradients for data with this weighting."""
        return Scorer(self.objective, weight, name, start=start)

    # ---- against given vectors

    def scores(self, rows):
        """∇ℓ(train_j)ᵀ s / n for each training example j and each row s, (k, n)."""
        values = np.empty((len(rows), self.n), self.parameters.dtype.as_numpy_dtype)
        title = f"Scores of {self.n} training examples"
        found = self.scores_by_batch(rows)
        for where, part in self.progress.over(found, title, len(self.train)):
            values[:, where] = part
        return values

    def scores_by_batch(self, rows):
        """`scores` batch after batch: (slice, (k, b))."""
        about = self.facts.examples(), self.as_rows(rows)
        return self._shares(each(_scores, self._ground, self.train, *about))

    def input_gradients_by_batch(self, batches, rows):
        """∂/∂x of `scores` for training examples: (slice, (k, b, all floating features))."""
        about = self.facts.examples(), self.as_rows(rows)
        return self._shares(each(_input_gradients, self._ground, batches, *about))

    def _shares(self, parts):
        """Results of batches, (k, b, ...), divided by n, each with where its examples stand."""
        start = 0
        for part in parts:
            stop = start + part.shape[1]
            yield slice(start, stop), part / self.n
            start = stop

    @property
    def _ground(self):
        return Ground(self.objective, self.facts, self._few)

    def as_rows(self, rows):
        """Vectors in the layout and dtype of the kernels."""
        return np.ascontiguousarray(rows, self.parameters.dtype.as_numpy_dtype)


# ---- passes over data; see `passes`


def counts(ground, run, weight):
    """A pass: (terms, 3) what each term's divisor is made of; see `Objective.counts`."""
    return sum(ground.objective.counts(batch, weight).numpy().astype(float) for batch in run)


def _losses(ground, run, weight):
    for batch in run:
        yield ground.objective.losses(batch, weight).numpy()


def _values_and_gradients(ground, run, weight):
    found = np.zeros(1 + ground.objective.parameters.size)
    for batch in run:
        value, gradient = ground.objective.at_ones(batch, weight)
        found[0] += value
        found[1:] += gradient
    return found


def _scores(ground, run, weight, rows):
    objective = ground.objective
    scorer = Scorer(objective, weight, "train", rows, run.start)
    for batch in run:
        yield np.concatenate(scorer.scores(batch), axis=1).T


def _input_gradients(ground, run, weight, rows):
    for batch in run:
        yield ground.objective.input_gradients(batch, weight, rows).numpy()
