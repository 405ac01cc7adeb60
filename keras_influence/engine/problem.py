"""A model and its training data, as one thing that can be asked."""

import copy

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.curvature import GaussNewton, Hessian
from keras_influence.engine.curvature.convex import check_convex
from keras_influence.engine.data import batches as data
from keras_influence.engine.kernels.targets import Targets, check_finite, check_target
from keras_influence.engine.kernels.whole_set import WholeSet, value_of_set
from keras_influence.engine.layers.footprint import examples_together, footprint_of
from keras_influence.engine.layers.kept import check_fresh, objective_of
from keras_influence.engine.layers.scoring import Scorer
from keras_influence.engine.layers.worth import Worth
from keras_influence.engine.loss import checks
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.finding import check_loss, find_facts
from keras_influence.engine.loss.looks import computing, few_of, near, remembering
from keras_influence.engine.loss.runs import check_runs
from keras_influence.engine.passes.ground import Ground
from keras_influence.engine.passes.passes import each, total
from keras_influence.engine.selection import select
from keras_influence.progress import Progress

# How far numbers may differ that are computed in the same way once more.
_SAME = 1e-5

CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}


class Problem:
    """A model and its training data: losses, gradients, scores and curvature.

    Nothing of it changes once it is made. The model's weights are no part of it: each method
    takes them as they are when it is called.

    Args:
        model: a built, compiled `keras.Model`.
        train: the training data, in the forms that `influence` takes.
        batch_size: examples per batch, for arrays.
        class_weight: dict from class index to weight, as in `model.fit`.
        variables: which trainable weights are θ; see `selection.select`.
        smooth: let the smooth versions of the hinge losses stand in for them, with a warning.
        verbose: as in `Progress`.
        name: what to call the data in messages.
        hidden: warn of what training minimises beside the compiled loss.

    Attributes:
        model: the model.
        objective: its compiled loss with all derivatives, batch by batch.
        parameters: θ, as `Parameters`.
        train: the training data, as `Batches`.
        n: number of training examples.
        facts: what holds for the loss on them, `Facts`.
        footprint: what one example takes, `Footprint`.
        looks: numbers that a few examples, and what is there without any, give; see `check_fresh`.
        progress: shows what takes long.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """

    def __init__(
        self,
        model,
        train,
        *,
        batch_size=None,
        class_weight=None,
        variables=None,
        smooth=False,
        verbose=0,
        name="train",
        hidden=True,
    ):
        self.model = model
        self.progress = Progress(verbose)
        checks.check_model(model, hidden)
        chosen = select(model, variables)
        checks.check_followed(model, chosen)
        self.train = data.read(train, batch_size, name, class_weight)
        self.n = self.train.n
        self._smooth, self._chosen, self._name = smooth, chosen, name
        self._loss_state = _keras.loss_state(model)
        self._trainable = [id(v) for v in model.trainable_variables]
        with remembering(model):
            self._few = few_of(self.train)
            # Before the other looks, which then need no call of their own.
            self.footprint = footprint_of(model, self._few, name)
            check_runs(model, self._few, name)
            fitting = examples_together(self.footprint.numbers, _itemsize(chosen))
            self._batch_size = batch_size or fitting
            self.train = self.train.in_batches_of(self._batch_size)
            self.facts = self._facts()
            self.objective = objective_of(model, chosen, self.facts.reading, self.facts.added)
            self.looks = check_fresh(self.objective, self._few, self.facts, name)
        self.parameters = self.objective.parameters
        if smooth:
            checks.warn_about_kinks(model)

    def read(self, examples, name, class_weight=None, labels=True):
        """Other data, such as test examples, as `Batches` that the model and its loss can take.

        Arrays come in batches of the size of those of the training data; a dataset brings its own.

        Args:
            labels: whether they need any: the loss does.
        """
        batch_size = self._batch_size if isinstance(examples, tuple) else None
        batches = data.read(examples, batch_size, name, class_weight)
        few = few_of(batches)
        with remembering(self.model):
            check_runs(self.model, few, name, chance=False)
            if labels or keras.utils.unpack_x_y_sample_weight(few)[1] is not None:
                check_loss(self.model, batches, few, name)
        return batches

    def change(self):
        """What of the model is not as it was when this was made, weights apart, in words; "" if nothing."""
        if [id(v) for v in self.model.trainable_variables] != self._trainable:
            return "other weights are trainable than before"
        if _keras.loss_state(self.model) != self._loss_state:
            return "the model was compiled anew"
        with remembering(self.model):
            looks = check_fresh(self.objective, self._few, self.facts, self._name)
        if not near(looks[:1], self.looks[:1], _SAME):
            return "the loss or the architecture has changed"
        if not near(looks[1:], self.looks[1:], _SAME):
            return "a regulariser, or what layers add by `add_loss`, has changed"
        return ""

    def _facts(self):
        """What holds of the loss on the training examples."""

        def count(reading, added):
            objective = objective_of(self.model, self._chosen, reading, added)
            ground = Ground(objective, None, None)
            return total(_counts, ground, self.train, Weighting())

        about = self.model, self.train, self._few, self._name
        return find_facts(*about, smooth=self._smooth, count=count)

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

    def only(self, positions):
        """The problem of some of the training examples alone."""
        part = copy.copy(self)
        part.train = self.train.subset(positions)
        part.n = part.train.n
        part._few = few_of(part.train)
        with remembering(self.model):
            check_runs(self.model, part._few, self._name, chance=False)
            part.facts = part._facts()
        return part

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

    def curvature(self, name, group=None, facts=None, doubtful=False):
        """The curvature of the training objective, an undamped `LinearOperator`.

        Args:
            name: one of `CURVATURES`.
            facts: those of another objective than that of `fit`.
            group: training examples, as `Batches`, to take out of it, n unchanged.
            doubtful: whether it may well have negative eigenvalues; see `LinearOperator`.

        Raises:
            ValueError: it is not defined for the model's loss.
        """
        if name == "gauss_newton":
            check_convex(self._ground, self.train)
        ground = Ground(self.objective, facts or self.facts, self._few)
        whole = CURVATURES[name](ground, self.train, self.footprint, self.progress)
        found = whole if group is None else whole.without(group)
        found.doubtful = doubtful
        return found

    def costs(self):
        """What products with the curvature cost, for who chooses a solver by that; see `Auto`."""
        return Worth(self.objective, self.footprint, self.train).costs()

    def as_rows(self, rows):
        """Vectors in the layout and dtype of the kernels."""
        return np.ascontiguousarray(rows, self.parameters.dtype.as_numpy_dtype)


# ---- passes over data; see `passes`


def _counts(ground, run, weight):
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


def _itemsize(variables):
    return max(tf.as_dtype(v.dtype).size for v in variables)
