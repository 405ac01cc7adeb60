"""The questions, as functions of any Keras model: hvp, inverse_hvp, influence, self_influence."""

import warnings

import numpy as np

from keras_influence import solvers
from keras_influence.errors import CurvatureWarning, SolverError
from keras_influence.operators import Damped, GaussNewton, Hessian
from keras_influence.progress import Progress
from keras_influence.scores import InfluenceScores
from keras_influence.session import objective_of, read
from keras_influence.solvers.base import check_number

CURVATURES = {"hessian": Hessian, "gauss_newton": GaussNewton}

# Right-hand sides solved together in `self_influence`.
_BLOCK = 128


def hvp(model, v, train, *, batch_size=None, damping=0.0, curvature="hessian"):
    """The curvature of the training objective times `v`: (H + λI) v.

    Args:
        model: a built, compiled `keras.Model`.
        v: (p,) vector, (p, k) matrix of k vectors, or a list aligned with
            `model.trainable_variables`.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, a batched finite
            `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        batch_size: examples per batch, for arrays (default 256). Memory and speed
            depend on it, the result does not.
        damping: λ >= 0.
        curvature: `"hessian"`, ∇²L of the compiled loss with its regularisers, or
            `"gauss_newton"`, Jᵀ(∇²ℓ)J plus the regularisers' Hessian.

    Returns:
        The product in the form of `v`, in the weights' dtype.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    _check_curvature(curvature, CURVATURES)
    check_number("damping", damping)
    objective = objective_of(model)
    columns, restore = objective.parameters.as_columns(v)
    batches = read(train, objective, batch_size, "train", model)
    operator = Damped(CURVATURES[curvature](objective, batches, batches.n), damping)
    return restore(operator.matmat(columns))


def inverse_hvp(
    model,
    v,
    train,
    *,
    method="cg",
    damping=0.01,
    curvature="hessian",
    batch_size=None,
    verbose="auto",
):
    """The inverse of the damped curvature times `v`: (H + λI)⁻¹ v.

    Args:
        model, v, train, batch_size, curvature: as in `hvp`.
        method: `"cg"`, `"lissa"`, `"ncg"`, `"direct"`, `"auto"`; a solver with
            options such as `CG(tol=1e-8)`; or its config. All solve the same system.
        damping: λ >= 0.
        verbose: 0 is silent, 1 shows a progress bar, "auto" shows one for long work.

    Returns:
        The solution in the form of `v`, in the weights' dtype. A
        `ConvergenceWarning` says if the solver missed its tolerance.

    Raises:
        NegativeCurvatureError: the system is not positive definite and the method needs it.
        DivergenceError: the method diverged.
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    _check_curvature(curvature, CURVATURES)
    check_number("damping", damping)
    progress = Progress(verbose)
    solver = None if method == "auto" else solvers.get(method)
    objective = objective_of(model)
    columns, restore = objective.parameters.as_columns(v)
    solver = solver or solvers.choose(objective.parameters.size)
    batches = read(train, objective, batch_size, "train", model)
    operator = Damped(CURVATURES[curvature](objective, batches, batches.n), damping)
    solution = _solve(solver, operator, columns, progress)
    return restore(solution.x.astype(operator.dtype))


def influence(
    model,
    test,
    train,
    *,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    verbose="auto",
):
    """Predict how each test loss would change if each training example were left out.

    `values[i, j] = +∇ℓ(test_i)ᵀ (H + λI)⁻¹ ∇ℓ(train_j) / n`, in units of the loss:
    -1/n times Koh and Liang's I_up,loss (2017, eq. 2). Positive = helpful
    (proponent), negative = harmful (opponent).

    Args:
        model: a built, compiled and trained `keras.Model`. Evaluated with
            `training=False`: dropout is off, BatchNormalization is frozen.
        test: examples to explain, in the forms that `train` takes.
        train: the training data, in an order that is the same at each pass.
        method: `"auto"` (dense up to 1,000 parameters, else CG), or as in `inverse_hvp`.
        damping: λ >= 0.
        curvature: `"hessian"`, `"gauss_newton"`, or `"auto"`: the Hessian where it is
            positive definite with this damping, else Gauss-Newton, with a warning.
        batch_size: as in `hvp`.
        verbose: as in `inverse_hvp`.

    Returns:
        `InfluenceScores` with `values` of shape (n_test, n_train).

    Raises:
        As `inverse_hvp`.
    """
    session = _Session(model, train, method, damping, curvature, batch_size, verbose)
    test = read(test, session.objective, _test_batch(test, batch_size), "test", model)
    rows = session.example_gradients(test)
    solution, used = session.solve(rows.T)
    values = session.scores(solution.x.T)
    return InfluenceScores(
        values=values,
        residual=solution.residual,
        iterations=np.array(solution.iterations),
        converged=solution.converged,
        solver=solution.solver,
        curvature=used,
        damping=float(damping),
        reason=session.reason,
        parameters=tuple(v.path for v in session.objective.parameters.variables),
    )


def self_influence(
    model,
    train,
    *,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    verbose="auto",
):
    """How much each training example props up its own prediction: ∇ℓ(z)ᵀ (H + λI)⁻¹ ∇ℓ(z).

    Mislabelled and atypical examples have the largest values. Divided by n it is
    the predicted rise of an example's own loss if it were left out. One solve
    per training example, in blocks that share their passes over the data.

    Args:
        As in `influence`.

    Returns:
        (n_train,) array in units of the loss times n; the largest are the most suspicious.

    Raises:
        As `inverse_hvp`.
    """
    session = _Session(model, train, method, damping, curvature, batch_size, verbose)
    return session.self_influence()


class _Session:
    """The checked arguments of one call, and the steps that the questions share."""

    def __init__(self, model, train, method, damping, curvature, batch_size, verbose):
        _check_curvature(curvature, ("auto", *CURVATURES))
        check_number("damping", damping)
        self.progress = Progress(verbose)
        self.damping = damping
        self.curvature = curvature
        self._factors = {}
        solver = None if method == "auto" else solvers.get(method)
        self.objective = objective_of(model)
        self.solver = solver or solvers.choose(self.objective.parameters.size)
        self.reason = "" if solver else f"{self.objective.parameters.size} parameters"
        self.train = read(train, self.objective, batch_size, "train", model)

    def example_gradients(self, batches):
        """∇ℓ of each example, (n, p)."""
        shown = self.progress.over(batches, f"Gradients of {batches.n} examples", len(batches))
        return np.concatenate([self.objective.example_gradients(b).numpy() for b in shown])

    def operator(self, curvature):
        return Damped(CURVATURES[curvature](self.objective, self.train, self.train.n), self.damping)

    def solve(self, columns, progress=None):
        """Solve with the curvature that was asked for, and say which one it was."""
        if self.curvature != "auto":
            return self._solve(self.curvature, columns, progress), self.curvature
        try:
            solution = self._solve("hessian", columns, progress)
            if solution.positive_definite:
                return solution, "hessian"
            why = "the Hessian plus damping has negative eigenvalues"
        except SolverError as error:
            why = str(error).split(":")[0]
        warnings.warn(
            f"curvature='auto' uses Gauss-Newton: {why}. Choose curvature='gauss_newton', or "
            "raise `damping`, to be without this warning.",
            CurvatureWarning,
            stacklevel=4,
        )
        self.curvature = "gauss_newton"
        return self.solve(columns, progress)

    def _solve(self, curvature, columns, progress):
        if curvature not in self._factors:
            operator = self.operator(curvature)
            self._factors[curvature] = operator, self.solver.factorise(operator)
        operator, factor = self._factors[curvature]
        return _solve(self.solver, operator, columns, progress or self.progress, factor)

    def scores(self, rows):
        """∇ℓ(train_j)ᵀ s / n for each row s, (k, n)."""
        rows = np.ascontiguousarray(rows, self.objective.parameters.dtype.as_numpy_dtype)
        title = f"Scores of {self.train.n} training examples"
        shown = self.progress.over(self.train, title, len(self.train))
        parts = [self.objective.scores(batch, rows).numpy() for batch in shown]
        return np.concatenate(parts).T / self.train.n

    def self_influence(self):
        values = []
        for batch in self.progress.over(self.train, "Self-influence", len(self.train)):
            rows = self.objective.example_gradients(batch).numpy()
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                solution, _ = self.solve(block.T, Progress(0))
                values.append(np.einsum("ij,ji->i", block.astype(np.float64), solution.x))
        return np.concatenate(values)


def _solve(solver, operator, columns, progress, factor=None):
    step = progress.stage(f"Solve for {columns.shape[1]} right-hand sides with {solver}")
    solution = solver.solve(operator, columns, lambda i, r: step(i, residual=r), factor)
    step.close()
    return solution


def _test_batch(test, batch_size):
    return batch_size if isinstance(test, tuple) else None


def _check_curvature(curvature, known):
    if curvature not in tuple(known):
        raise ValueError(
            f"`curvature` should be one of {sorted(known)}. Received: curvature={curvature!r}"
        )
