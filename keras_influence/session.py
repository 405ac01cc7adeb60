"""One call's checked arguments, and the steps that all questions share."""

import warnings
import weakref

import keras
import numpy as np

from keras_influence import _keras, checks, data, solvers
from keras_influence.contraction import VECTORS, Contraction
from keras_influence.errors import CurvatureWarning, SolverError
from keras_influence.objective import Objective
from keras_influence.operators import Damped, GaussNewton, Hessian
from keras_influence.progress import Progress
from keras_influence.solvers.base import check_number

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
        check_number("damping", damping)
        self.progress = Progress(verbose)
        solver = None if method == "auto" else solvers.get(method)
        self.model = model
        self.damping = float(damping)
        self.curvature = curvature
        self.objective = objective_of(model, variables)
        self.solver = solver or solvers.choose(self.objective.parameters.size)
        self.reason = "" if solver else f"auto: {self.objective.parameters.size} parameters"
        self.train = self.read(train, "train", batch_size, class_weight)
        self.used = curvature
        self._factors = {}
        self._convex = False

    def read(self, examples, name, batch_size=None, class_weight=None):
        """A user's data as `Batches` that the model and its loss can take."""
        batches = data.read(examples, batch_size, name, class_weight)
        checks.check_loss(self.model, self.objective, batches, name, learn=name == "train")
        return batches

    def operator(self, curvature, group=None):
        """(H + λI), with the examples of `group` taken out of H if it is given."""
        if curvature == "gauss_newton" and not self._convex:
            checks.check_convex(self.model, self.objective, self.train)
            self._convex = True
        operator = CURVATURES[curvature](self.objective, self.train)
        return Damped(operator if group is None else operator.without(group), self.damping)

    def solve(self, columns, group=None, quiet=False, x0=None):
        """Solve with the curvature that was asked for; `self.used` says which one it was.

        With "auto", the first solve that finds the Hessian indefinite turns to
        Gauss-Newton for good.

        Returns:
            A `Solution`.
        """
        if self.curvature != "auto" or self.used == "gauss_newton":
            return self._solve(self.used, columns, group, quiet, x0)
        try:
            solution = self._solve("hessian", columns, group, quiet, x0)
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
        return self._solve(self.used, columns, group, quiet, x0)

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

    def _solve(self, curvature, columns, group, quiet, x0):
        operator, factor = self._factors.get(curvature, (None, None))
        if group is not None or operator is None:
            operator, factor = self.operator(curvature, group), None
        progress = Progress(0) if quiet else self.progress
        step = progress.stage(f"Solve for {columns.shape[1]} right-hand sides with {self.solver}")
        solution = self.solver.solve(
            operator, columns, x0=x0, factor=factor, on_step=lambda i, r: step(i, residual=r)
        )
        if group is None:
            self._factors[curvature] = operator, solution.factor
        step.close()
        return solution

    def example_gradients(self, batches, target=None):
        """∇ℓ of each example, or ∇target, (n, p)."""
        if target is not None:
            checks.check_target(target, self.objective, batches)
        shown = self.progress.over(batches, f"Gradients of {batches.n} examples", len(batches))
        plain = self.objective.masked or not self.contraction.trusted(batches)
        kernels = self.objective if plain else self.contraction
        parts = [
            kernels.example_gradients(batch)
            if target is None
            else self.objective.target_gradients(batch, target)
            for batch in shown
        ]
        return np.concatenate([part.numpy() for part in parts])

    def scores(self, rows):
        """∂/∂ω_j ⟨∇L, s⟩ for each training example j and each row s, (k, n)."""
        rows = self.as_rows(rows)
        title = f"Scores of {self.train.n} training examples"
        shown = self.progress.over(self.train, title, len(self.train))
        kernels = self.contraction if self.contraction.trusted(self.train) else self.objective
        blocks = [rows[start : start + VECTORS] for start in range(0, len(rows), VECTORS)]
        values = np.empty((len(rows), self.train.n), rows.dtype)
        start = 0
        for batch in shown:
            weight = self.weight(batch)
            parts = [kernels.scores(batch, weight, block).numpy() for block in blocks]
            part = np.concatenate(parts, axis=1)
            values[:, start : start + len(part)] = part.T
            start += len(part)
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


def objective_of(model, variables=None):
    """The `Objective` of a model, with the kernels compiled in earlier calls.

    Args:
        model: a Keras model.
        variables: which trainable weights are θ; see `select`.

    Raises:
        TypeError, ValueError: the model or the selection is not usable.
    """
    checks.check_model(model)
    chosen = select(model, variables)
    state = (_keras.loss_state(model), [id(v) for v in model.trainable_variables])
    known = _objectives.get(model)
    if known is None or known[0] != state:
        known = _objectives[model] = (state, {})
    key = tuple(id(v) for v in chosen)
    if key not in known[1]:
        known[1][key] = Objective(model, chosen)
    return known[1][key]


def select(model, variables):
    """The trainable weights of `model` that `variables` means, in the model's order.

    Args:
        variables: None for all; a layer or a list of layers and variables; or a
            function of a variable that returns a bool.

    Raises:
        TypeError: it is none of these.
        ValueError: it selects no trainable weight, or one of another model.
    """
    trainable = model.trainable_variables
    if variables is None:
        return trainable
    if callable(variables) and not isinstance(variables, keras.layers.Layer):
        chosen = [v for v in trainable if variables(v)]
    else:
        wanted = variables if isinstance(variables, (list, tuple)) else [variables]
        chosen = [v for item in wanted for v in _variables_of(item)]
        known = {id(v) for v in model.variables}
        foreign = [v.path for v in chosen if id(v) not in known]
        if foreign:
            raise ValueError(f"`variables` has weights that are not the model's: {foreign}")
        ids = {id(v) for v in chosen}
        chosen = [v for v in trainable if id(v) in ids]
    if not chosen:
        raise ValueError(
            "`variables` selects no trainable weight. The model's are: "
            f"{[v.path for v in trainable]}"
        )
    return chosen


def _variables_of(item):
    if isinstance(item, keras.layers.Layer):
        return item.trainable_variables
    if isinstance(item, _keras.Variable):
        return [item]
    raise TypeError(
        "`variables` should be a layer, a list of layers and variables, or a function of a "
        f"variable that returns a bool. Received: {type(item).__name__}"
    )


def check_curvature(curvature, known):
    """Raise a ValueError unless `curvature` is one of `known`."""
    if not isinstance(curvature, str) or curvature not in known:
        raise ValueError(
            f"`curvature` should be one of {sorted(known)}. Received: curvature={curvature!r}"
        )
