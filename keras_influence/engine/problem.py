"""A model and its training data, as one thing that can be asked."""

import weakref

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.curvature import GaussNewton, Hessian
from keras_influence.engine.data import batches as data
from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.layers.contraction import VECTORS, Contraction
from keras_influence.engine.loss import checks
from keras_influence.engine.loss.compiled import batch_size as size_of
from keras_influence.engine.selection import select
from keras_influence.progress import Progress

CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}

# Compiled kernels live as long as the model and its compile state, and no longer.
_objectives = weakref.WeakKeyDictionary()


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

    Attributes:
        model: the model.
        objective: its compiled loss with all derivatives, batch by batch.
        parameters: θ, as `Parameters`.
        train: the training data, as `Batches`.
        n: number of training examples.
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
    ):
        self.model = model
        self.progress = Progress(verbose)
        self.objective = objective_of(model, variables, smooth)
        self.parameters = self.objective.parameters
        self.train = data.read(train, batch_size, name, class_weight)
        self.n = self.train.n
        self._batch_size = batch_size
        checks.check_loss(model, self.objective, self.train, name, learn=True)
        if smooth:
            checks.warn_about_kinks(model)

    def read(self, examples, name, class_weight=None):
        """Other data, such as test examples, as `Batches` that the model and its loss can take.

        Arrays come in batches of the size of those of the training data; a dataset brings its own.
        """
        batch_size = self._batch_size if isinstance(examples, tuple) else None
        batches = data.read(examples, batch_size, name, class_weight)
        checks.check_loss(self.model, self.objective, batches, name, learn=False)
        return batches

    # ---- values and first derivatives

    def losses(self, batches):
        """ℓ of each example, (n,) float64, weighted by its sample weight, without regularisers."""
        objective = self.objective
        parts = [
            objective.losses(b).numpy() / (size_of(b) if objective.sums else 1) for b in batches
        ]
        return np.concatenate(parts).astype(np.float64)

    def targets(self, batches, target):
        """`target(x, y, y_pred)` of each example, (n,) float64."""
        parts = [self.objective.eager_targets(batch, target) for batch in batches]
        return np.concatenate([np.ravel(part).astype(np.float64) for part in parts])

    def gradient(self, batches):
        """(1/n) Σ ∇ℓ over some of the training examples, (p,) float64: their share of ∇L."""
        total = np.zeros(self.parameters.size)
        for batch in batches:
            # The regulariser is in both.
            with_examples, without = (
                self.objective.gradient(batch, weight).numpy()
                for weight in (self._weight(batch), 0.0)
            )
            total += with_examples.astype(np.float64) - without
        return total / self.n

    def example_gradients(self, batches, target=None):
        """∇ℓ of each example, or ∇target, (n, p).

        Raises:
            ValueError, TypeError: `target` does not give one number for each example.
        """
        if target is not None:
            checks.check_target(target, self.objective, batches)
        shown = self.progress.over(batches, f"Gradients of {batches.n} examples", len(batches))
        return np.concatenate(list(self.gradients_by_batch(shown, batches, target)))

    def gradients_by_batch(self, shown, batches, target=None):
        """`example_gradients` batch after batch, for batches taken from `batches`."""
        if target is not None:
            for batch in shown:
                yield self.objective.target_gradients(batch, target).numpy()
            return
        plain = self.objective.masked or not self.contraction.trusted(batches)
        kernels = self.objective if plain else self.contraction
        for batch in shown:
            yield kernels.example_gradients(batch).numpy()

    # ---- against given vectors

    def scores(self, rows):
        """∇ℓ(train_j)ᵀ s / n for each training example j and each row s, (k, n)."""
        rows = self.as_rows(rows)
        title = f"Scores of {self.n} training examples"
        kernels = self.contraction if self.contraction.trusted(self.train) else self.objective
        parts = [slice(start, start + VECTORS) for start in range(0, len(rows), VECTORS)]
        blocks = [(part, tf.convert_to_tensor(rows[part])) for part in parts]
        values = np.empty((len(rows), self.n), rows.dtype)
        start = 0
        for batch in self.progress.over(self.train, title, len(self.train)):
            weight, stop = self._weight(batch), start + size_of(batch)
            for part, block in blocks:
                values[part, start:stop] = np.asarray(kernels.scores(batch, weight, block)).T
            start = stop
        values /= self.n
        return values

    def input_gradients(self, rows, batches):
        """∂/∂x of `scores` for some training examples, (k, n, all floating features)."""
        rows = self.as_rows(rows)
        title = f"Input gradients of {batches.n} examples"
        parts = [
            self.objective.input_gradients(batch, self._weight(batch), rows).numpy()
            for batch in self.progress.over(batches, title, len(batches))
        ]
        return np.concatenate(parts, axis=1) / self.n

    def curvature(self, name, group=None):
        """The curvature of the training objective, an undamped `LinearOperator`.

        Args:
            name: one of `CURVATURES`.
            group: training examples, as `Batches`, to take out of it, n unchanged.

        Raises:
            ValueError: it is not defined for the model's loss.
        """
        if name == "gauss_newton":
            checks.check_convex(self.model, self.objective, self.train)
        whole = CURVATURES[name](self.objective, self.train)
        return whole if group is None else whole.without(group)

    @property
    def contraction(self):
        """The faster way to scores and example gradients, for models that allow it."""
        if self.objective.contraction is None:
            self.objective.contraction = Contraction(self.objective, self.model)
        return self.objective.contraction

    def as_rows(self, rows):
        """Vectors in the layout and dtype of the kernels."""
        return np.ascontiguousarray(rows, self.parameters.dtype.as_numpy_dtype)

    def _weight(self, batch):
        """The weight with which a batch stands for its part of the training data."""
        return self.objective.weight_in(batch, self.n)


def objective_of(model, variables=None, smooth=False):
    """The `Objective` of a model, with the kernels compiled in earlier calls.

    Args:
        model: a Keras model.
        variables: which trainable weights are θ; see `selection.select`.
        smooth: let the smooth versions of the hinge losses stand in for them.

    Raises:
        TypeError, ValueError: the model or the selection is not usable.
    """
    checks.check_model(model)
    chosen = select(model, variables)
    state = (_keras.loss_state(model), [id(v) for v in model.trainable_variables])
    known = _objectives.get(model)
    if known is None or known[0] != state:
        known = _objectives[model] = (state, {})
    key = (smooth, *(id(v) for v in chosen))
    if key not in known[1]:
        known[1][key] = Objective(model, chosen, smooth)
    return known[1][key]
