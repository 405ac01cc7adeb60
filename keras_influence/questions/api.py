"""The questions about single examples, as functions of any Keras model."""

import numpy as np

from keras_influence.questions.scores import InfluenceScores
from keras_influence.questions.session import CURVATURES, Session

# Right-hand sides solved together in `self_influence`.
_BLOCK = 128


def hvp(
    model,
    v,
    train,
    *,
    damping=0.0,
    curvature="hessian",
    batch_size=None,
    class_weight=None,
    variables=None,
):
    """The curvature of the training objective times `v`: (H + λI) v.

    The objective is the compiled loss of all of `train` as one batch, regularisers
    included, at `training=False`.

    Args:
        model: a built, compiled `keras.Model`.
        v: (p,) vector, (p, k) matrix of k vectors, or a list aligned with θ, which is
            `model.trainable_variables` or what `variables` selects of them.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, a batched finite
            `tf.data.Dataset`, or a `keras.utils.PyDataset`.
        damping: λ >= 0.
        curvature: `"hessian"`, ∇²L of the compiled loss with its regularisers, or
            `"gauss_newton"`, Jᵀ(∇²ℓ)J plus the regularisers' Hessian.
        batch_size: examples per batch, for arrays (default 256). Memory and speed
            depend on it, the result does not.
        class_weight: dict from class index to weight, as in `model.fit`.
        variables: which trainable weights are θ: a layer, a list of layers and
            variables, or a function of a variable that returns a bool. Default all.

    Returns:
        The product in the form of `v`, in the weights' dtype.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    session = Session(
        model,
        train,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        curvatures=tuple(CURVATURES),
    )
    rows, restore = session.objective.parameters.as_rows(v)
    return restore(session.operator(curvature).matmat(rows))


def inverse_hvp(
    model,
    v,
    train,
    *,
    method="cg",
    damping=0.01,
    curvature="hessian",
    batch_size=None,
    class_weight=None,
    variables=None,
    x0=None,
    verbose="auto",
):
    """The inverse of the damped curvature times `v`: (H + λI)⁻¹ v.

    Args:
        model, v, train, curvature, batch_size, class_weight, variables: as in `hvp`.
        method: `"cg"`, `"direct"`, `"lissa"`, `"minres"`, `"ncg"`, which reach the answer; `"nystrom"`,
            `"arnoldi"`, `"ekfac"`, `"astra"`, which are made for many right-hand sides; `"auto"`,
            which weighs the costs; a solver with options such as `CG(tol=1e-8)`; or its config.
            All are for the same system.
        damping: λ >= 0, or `"auto"`: a tenth of the mean eigenvalue of the curvature, plus
            what outweighs its most negative one.
        x0: a guess to start from, in the form of `v`. Default zero.
        verbose: 0 is silent, 1 shows a progress bar, "auto" shows one for long work.

    Returns:
        The solution in the form of `v`, in the weights' dtype. A
        `ConvergenceWarning` says if the solver missed its tolerance.

    Raises:
        NegativeCurvatureError: the system is not positive definite and the method needs it.
        DivergenceError: the method diverged.
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
        curvatures=tuple(CURVATURES),
    )
    return inverse(session, v, x0)


def inverse(session, v, x0=None):
    """`inverse_hvp` for a `Session`."""
    rows, restore = session.objective.parameters.as_rows(v)
    start = None if x0 is None else session.objective.parameters.as_rows(x0, "x0")[0]
    if start is not None and start.shape != rows.shape:
        raise ValueError(
            f"`x0` should have the form of `v`. Received: {start.T.shape}, {rows.T.shape}"
        )
    return restore(session.as_rows(session.solve(rows, x0=start).x))


def influence(
    model,
    test,
    train,
    *,
    target=None,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
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
        target: a function of `(x, y, y_pred)` that returns one number per test example,
            (batch,), to be explained in place of the test loss: a margin, a class's
            logit, a regression output. A positive score then means that leaving the
            training example out would raise the target. Written with TensorFlow or
            `keras.ops`.
        method: `"auto"` weighs the costs (see `Auto`): the dense matrix, preconditioned CG, or
            EK-FAC where an exact answer would take too long; or as in `inverse_hvp`.
        damping: λ >= 0, or `"auto"`: a tenth of the mean eigenvalue of the curvature.
        curvature: `"hessian"`, `"gauss_newton"`, or `"auto"`: the Hessian where it is
            positive definite with this damping, else Gauss-Newton, with a warning. "auto"
            also takes the hinge losses in their smooth version (see `SmoothHinge`), for
            all derivatives, with a warning.
        batch_size, class_weight, variables: as in `hvp`.
        verbose: as in `inverse_hvp`.

    Returns:
        `InfluenceScores` with `values` of shape (n_test, n_train).

    Raises:
        As `inverse_hvp`.
    """
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
    )
    return explain(session, test, target, batch_size)


def explain(session, test, target, batch_size):
    """`influence` for a `Session`."""
    test = session.read(test, "test", _for_arrays(batch_size, test))
    solution = session.solve(session.example_gradients(test, target))
    return InfluenceScores(
        values=session.scores(solution.x),
        residual=solution.residual,
        iterations=np.array(solution.iterations),
        converged=solution.converged,
        passes=solution.passes,
        solver=solution.solver,
        details=solution.details,
        curvature=session.used,
        damping=session.damping,
        reason=session.reason,
        target=name_of(target),
        parameters=tuple(v.path for v in session.objective.parameters.variables),
    )


def self_influence(
    model,
    train,
    *,
    indices=None,
    method="auto",
    damping=0.01,
    curvature="auto",
    batch_size=None,
    class_weight=None,
    variables=None,
    verbose="auto",
):
    """How much each training example props up its own prediction: ∇ℓ(z)ᵀ (H + λI)⁻¹ ∇ℓ(z).

    Mislabelled and atypical examples have the largest values. Divided by n it is
    the predicted rise of an example's own loss if it were left out. One solve
    per training example, in blocks that share their passes over the data.

    Args:
        model, train, method, damping, curvature, batch_size, class_weight, variables, verbose:
            as in `influence`.
        indices: positions of the training examples to answer for. Default all.

    Returns:
        (n_train,) or (len(indices),) array in units of the loss times n; the largest are the most suspicious.

    Raises:
        As `inverse_hvp`.
    """
    session = Session(
        model,
        train,
        method=method,
        damping=damping,
        curvature=curvature,
        batch_size=batch_size,
        class_weight=class_weight,
        variables=variables,
        verbose=verbose,
    )
    return self_influences(session, indices)


def self_influences(session, indices=None):
    """`self_influence` for a `Session`."""
    asked = session.picked(indices)
    session.plan(asked.n)
    return np.concatenate(session.solve_each(lambda: _self_influence(session, asked)))


def _self_influence(session, asked):
    """Yield the self-influence of block after block of the training examples `asked` for."""
    shown = session.progress.over(asked, "Self-influence", len(asked))
    for rows in session.gradients_by_batch(shown, asked):
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            solution = session.solve(block, quiet=True)
            yield np.einsum("ij,ij->i", block.astype(np.float64), solution.x)


def name_of(target):
    if target is None:
        return "test loss"
    name = getattr(target, "__name__", "<lambda>")
    return "target" if name == "<lambda>" else name


def _for_arrays(batch_size, examples):
    """`batch_size` where it applies: a dataset of test examples brings its own batches."""
    return batch_size if isinstance(examples, tuple) else None
