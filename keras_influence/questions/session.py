"""One call's checked arguments, and the steps that all questions share."""

import warnings
import weakref

import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.curvature import GaussNewton, Hessian
from keras_influence.engine.curvature.automatic import automatic_damping
from keras_influence.engine.data import batches as data
from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.layers.contraction import VECTORS, Contraction
from keras_influence.engine.loss import checks
from keras_influence.engine.loss.compiled import batch_size as size_of
from keras_influence.engine.selection import select
from keras_influence.errors import CurvatureWarning, SolverError
from keras_influence.linalg import solvers
from keras_influence.linalg.operators import Damped
from keras_influence.progress import Progress
from keras_influence.validate import check_number

CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}

# Compiled kernels live as long as the model and its compile state, and no longer.
_objectives = weakref.WeakKeyDictionary()


class Session:
    """The model, its training data and the settings of one call.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """

    def __init__(
        self,
        model,
        train,
        *,
        curvature,
        damping,
        method="auto",
        batch_size=None,
        class_weight=None,
        variables=None,
        verbose=0,
        curvatures=("auto", *CURVATURES),
    ):
        check_curvature(curvature, curvatures)
        automatic = isinstance(damping, str) and damping == "auto"
        if not automatic:
            check_number("damping", damping)
        self.progress = Progress(verbose)
        self.solver = solvers.get(method)
        self.reason = ""
        self.model = model
        self.curvature = curvature
        self.objective = objective_of(model, variables, smooth=curvature == "auto")
        self.train = self.read(train, "train", batch_size, class_weight)
        if curvature == "auto":
            checks.warn_about_kinks(model)
        self.used = curvature
        self.factors = {}
        self._operators = {}
        self._convex = False
        self.damping = self._automatic_damping() if automatic else float(damping)

    def read(self, examples, name, batch_size=None, class_weight=None):
        """A user's data as `Batches` that the model and its loss can take."""
        batches = data.read(examples, batch_size, name, class_weight)
        checks.check_loss(self.model, self.objective, batches, name, learn=name == "train")
        return batches

    def plan(self, columns):
        """Let `method="auto"` choose its solver for this many right-hand sides, if it has not."""
        if isinstance(self.solver, solvers.Auto):
            size = self.objective.parameters.size
            self.solver, reason = self.solver.choose(size, self.train.n, columns)
            self.reason = "; ".join(filter(None, [self.reason, reason]))
        if self.curvature == "auto" and self.solver.approximates:
            self.used = self.solver.approximates

    def _automatic_damping(self):
        """λ from the curvature without it."""
        definite = self.curvature != "hessian"
        self.damping = 0.0
        operator = self.operator("gauss_newton" if definite else "hessian")
        damping, self.reason = automatic_damping(operator, definite)
        return damping

    def picked(self, indices):
        """The training examples at these positions, as `Batches`; all of them for None."""
        if indices is None:
            return self.train
        array = np.asarray(indices)
        expected = (
            f"`indices` should be positions in `train`, integers from 0 to {self.train.n - 1}"
        )
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"{expected}. Received: {indices!r}")
        if not array.size or array.min() < 0 or array.max() >= self.train.n:
            raise ValueError(f"{expected}. Received: {np.array2string(array, threshold=6)}")
        return self.train.subset(array)

    def operator(self, curvature, group=None):
        """(H + λI), with the examples of `group` taken out of H if it is given."""
        if curvature == "gauss_newton" and not self._convex:
            checks.check_convex(self.model, self.objective, self.train)
            self._convex = True
        operator = CURVATURES[curvature](self.objective, self.train)
        return Damped(operator if group is None else operator.without(group), self.damping)

    def solve(self, rows, group=None, quiet=False, x0=None):
        """Solve with the curvature that was asked for; `self.used` says which one it was.

        With "auto", the first solve that finds the Hessian indefinite turns to
        Gauss-Newton for good.

        Returns:
            A `Solution`.
        """
        self.plan(len(rows))
        if self.curvature != "auto" or self.used == "gauss_newton":
            return self._solve(self.used, rows, group, quiet, x0)
        try:
            solution = self._solve("hessian", rows, group, quiet, x0)
            if solution.positive_definite:
                self.used = "hessian"
                return solution
            why = "the Hessian plus damping has negative eigenvalues"
        except SolverError as error:
            why = str(error).split(":")[0]
        warnings.warn(
            f"curvature='auto' uses Gauss-Newton: {why}. Choose curvature='gauss_newton', or "
            "raise `damping`, to be without this warning.",
            CurvatureWarning,
            stacklevel=4,
        )
        self.used = "gauss_newton"
        return self._solve(self.used, rows, group, quiet, x0)

    def solve_each(self, solves):
        """Run functions that call `solve`, all with the same curvature in the end.

        Args:
            solves: a function that returns an iterable of results of `solve`.
        """
        results, used = [], set()
        for result in solves():
            results.append(result)
            used.add(self.used)
        return results if len(used) < 2 else list(solves())

    def _solve(self, curvature, rows, group, quiet, x0):
        factor = self.factors.get(curvature) if group is None else None
        if group is not None:
            operator = self.operator(curvature, group)
        else:
            if curvature not in self._operators:
                self._operators[curvature] = self.operator(curvature)
            operator = self._operators[curvature]
        progress = Progress(0) if quiet else self.progress
        step = progress.stage(f"Solve for {len(rows)} right-hand sides with {self.solver}")
        solution = self.solver.solve(operator, rows, x0=x0, factor=factor, on_step=_shown_by(step))
        if group is None:
            self.factors[curvature] = solution.factor
        step.close()
        return solution

    def example_gradients(self, batches, target=None):
        """∇ℓ of each example, or ∇target, (n, p)."""
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

    def scores(self, rows):
        """∂/∂ω_j ⟨∇L, s⟩ for each training example j and each row s, (k, n)."""
        rows = self.as_rows(rows)
        title = f"Scores of {self.train.n} training examples"
        shown = self.progress.over(self.train, title, len(self.train))
        kernels = self.contraction if self.contraction.trusted(self.train) else self.objective
        parts = [slice(start, start + VECTORS) for start in range(0, len(rows), VECTORS)]
        blocks = [(part, tf.convert_to_tensor(rows[part])) for part in parts]
        values = np.empty((len(rows), self.train.n), rows.dtype)
        start = 0
        for batch in shown:
            weight, stop = self.weight(batch), start + size_of(batch)
            for part, block in blocks:
                values[part, start:stop] = np.asarray(kernels.scores(batch, weight, block)).T
            start = stop
        values /= self.train.n
        return values

    @property
    def contraction(self):
        """The faster way to scores and example gradients, for models that allow it."""
        if self.objective.contraction is None:
            self.objective.contraction = Contraction(self.objective, self.model)
        return self.objective.contraction

    def weight(self, batch):
        """The weight with which a batch stands for its part of the training data."""
        return self.objective.weight_in(batch, self.train.n)

    def as_rows(self, rows):
        """Vectors in the layout and dtype of the kernels."""
        return np.ascontiguousarray(rows, self.objective.parameters.dtype.as_numpy_dtype)


def _shown_by(step):
    """A solver's `on_step` that shows the residual where there is one."""
    return lambda i, residual: step(i, **{"residual": residual} if residual == residual else {})


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


def check_curvature(curvature, known):
    """Raise a ValueError unless `curvature` is one of `known`."""
    if not isinstance(curvature, str) or curvature not in known:
        raise ValueError(
            f"`curvature` should be one of {sorted(known)}. Received: curvature={curvature!r}"
        )
