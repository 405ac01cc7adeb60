"""A model and its training data, as one thing that can be asked."""

import copy

import keras
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.curvature import GaussNewton, Hessian
from keras_influence.engine.curvature.convex import check_convex
from keras_influence.engine.data import batches as data
from keras_influence.engine.data import rows
from keras_influence.engine.layers.footprint import examples_together, footprint_of
from keras_influence.engine.layers.kept import check_fresh, objective_of
from keras_influence.engine.layers.reads import Reads
from keras_influence.engine.layers.worth import Worth
from keras_influence.engine.loss import checks
from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.finding import check_loss, find_facts
from keras_influence.engine.loss.looks import few_of, near, remembering
from keras_influence.engine.loss.runs import check_runs
from keras_influence.engine.passes.ground import Ground
from keras_influence.engine.passes.passes import total
from keras_influence.engine.selection import select
from keras_influence.engine.summing import Summing, counts
from keras_influence.progress import Progress

# How far numbers may differ that are computed in the same way once more.
_SAME = 1e-5

CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}


class Problem(Summing):
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
        minimum: warn of a decay of weights too: the question is about a minimum, which it moves.

    Attributes:
        model: the model.
        objective: its compiled loss with all derivatives, batch by batch.
        parameters: θ, as `Parameters`.
        train: the training data, as `Batches`.
        n: number of training examples.
        facts: what holds for the loss on them, `Facts`.
        footprint: what one example takes, `Footprint`.
        looks: numbers that a few examples, and what is there without any, give; see `check_fresh`.
        reads: the plain values that layers and losses read, and checksums of variables that are not
            the model's; see `reads.Reads`.
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
        minimum=True,
    ):
        self.model = model
        self.progress = Progress(verbose)
        checks.check_model(model, hidden)
        chosen = select(model, variables)
        checks.check_followed(model, chosen)
        if hidden:
            checks.warn_about_constraints(model, chosen)
        if hidden and minimum:
            checks.warn_about_decay(model)
        self.train = data.read(train, batch_size, name, class_weight)
        self.n = self.train.n
        self._smooth, self._chosen, self._name = smooth, chosen, name
        self._loss_state = _keras.loss_state(model)
        self._trainable = [id(v) for v in model.trainable_variables]
        values = _keras.values_of(model)
        with remembering(model):
            self._few = few_of(self.train)
            # Before the other looks, which then need no call of their own.
            self.footprint = footprint_of(model, self._few, name)
            check_runs(model, self._few, name)
            fitting = examples_together(self.footprint.numbers, _itemsize(chosen))
            self._batch_size = batch_size or fitting
            self.train = self.train.in_batches_of(self._batch_size)
            # What adds up in the user's batches need not in these.
            joined = self._joined(self.train)
            self.facts = self._facts(joined)
            self.train = self.train if self._keeps_batches else joined
            self.objective = objective_of(model, chosen, self.facts.reading, self.facts.added)
            self.looks = check_fresh(self.objective, self._few, self.facts, name)
        _keras.leave_out_changing(model, values)
        self.reads = Reads(self.objective, self._few, self.facts)
        self.parameters = self.objective.parameters
        if smooth:
            checks.warn_about_kinks(model)

    def read(self, examples, name, class_weight=None, labels=True):
        """Other data, such as test examples, as `Batches` that the model and its loss can take.

        Arrays come in batches of the size of those of the training data; a dataset brings its own, of which small
        ones are joined.

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
        return batches if self._keeps_batches else self._joined(batches)

    @property
    def _keeps_batches(self):
        """Whether layers add what depends on the whole of a batch."""
        return self.facts.added == "mixed"

    def _joined(self, batches):
        """A user's small batches together."""
        itemsize, nbytes = _itemsize(self._chosen), rows.nbytes(self._few) / rows.size(self._few)
        # Who has batches of one may have a reason: there is no least number.
        numbers = self.footprint.numbers + nbytes / itemsize
        most = min(self._batch_size, examples_together(numbers, itemsize, least=1))
        return batches.joined(most, rows.layout(self._few))

    def change(self):
        """What of the model is not as it was when this was made, weights apart, in words; "" if nothing."""
        if [id(v) for v in self.model.trainable_variables] != self._trainable:
            return "other weights are trainable than before"
        state = _keras.loss_state(self.model)
        if state[:2] != self._loss_state[:2]:
            return "the model was compiled anew"
        with remembering(self.model):
            looks = check_fresh(self.objective, self._few, self.facts, self._name)
        if not near(looks[:1], self.looks[:1], _SAME):
            return "the loss or the architecture has changed"
        if not near(looks[1:], self.looks[1:], _SAME):
            return "a regulariser, or what layers add by `add_loss`, has changed"
        other = "a function that the loss calls has changed" if state != self._loss_state else ""
        return self.reads.change() or other

    def _facts(self, batches):
        """What holds of the loss on the training examples, in these batches."""

        def count(reading, added):
            objective = objective_of(self.model, self._chosen, reading, added)
            ground = Ground(objective, None, None)
            return total(counts, ground, batches, Weighting())

        about = self.model, batches, self._few, self._name
        return find_facts(*about, smooth=self._smooth, count=count)

    def only(self, positions):
        """The problem of some of the training examples alone."""
        part = copy.copy(self)
        part.train = self.train.subset(positions)
        part.n = part.train.n
        part._few = few_of(part.train)
        with remembering(self.model):
            check_runs(self.model, part._few, self._name, chance=False)
            part.facts = part._facts(part.train)
        return part

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


def _itemsize(variables):
    return max(tf.as_dtype(v.dtype).size for v in variables)
