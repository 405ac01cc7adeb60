"""A short check of one's own model: are its scores to be believed, and how far?"""

import dataclasses
import textwrap
import warnings

import numpy as np

from keras_influence.errors import ConvergenceWarning, CurvatureWarning
from keras_influence.evaluation.left_out import LeaveOneOut, leave_one_out
from keras_influence.evaluation.minimiser import Minimiser
from keras_influence.questions import influence as api
from keras_influence.questions.products import hvp
from keras_influence.validate import check_number

# Finite differences in float64: about 1e-9 for smooth models, more across the kinks of a ReLU.
_HVP_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, repr=False)
class Verification:
    """What `verify` found.

    Attributes:
        hvp_error: relative error of a Hessian product against finite differences of gradients.
        gradient: norm of the gradient of the training loss, in units of what one training
            example contributes to it (the median). 0 at a minimum.
        residual: largest relative residual of the solves.
        converged: whether all solves reached their tolerance.
        curvature: which curvature the scores used.
        damping: λ.
        retrained: `LeaveOneOut` of a few retrainings, None if none were asked for.
        verdict: sentences.
        ok: whether nothing speaks against the scores as predictions of retraining.
    """

    hvp_error: float
    gradient: float
    residual: float
    converged: bool
    curvature: str
    damping: float
    retrained: LeaveOneOut | None
    verdict: tuple
    ok: bool

    def __repr__(self):
        lines = [f"Verification: {'ok' if self.ok else 'see below'}"]
        for sentence in self.verdict:
            lines += textwrap.wrap(sentence, 86, initial_indent="  - ", subsequent_indent="    ")
        return "\n".join(lines)

    def plot(self):
        """The retrainings: actual against predicted. Returns a `matplotlib.figure.Figure`."""
        if self.retrained is None:
            raise ValueError("plot() shows retrainings: call verify(..., removals=8).")
        return self.retrained.plot()


def verify(
    model,
    train,
    test=None,
    *,
    removals=8,
    seed=0,
    method="auto",
    damping=0.01,
    curvature="auto",
    tol=1e-2,
    max_iter=100,
    batch_size=None,
    verbose="auto",
):
    """Check a model's scores in one call, with a verdict in words.

    Compares a Hessian product with finite differences of the gradient (in float64 where the
    model can be copied so), looks at the gradient that training left and at the residuals of
    the solves, and leaves a few examples out in earnest: half of them those with the largest
    scores, half drawn at random. The damping λ takes part in these retrainings, as a pull
    ½λ‖θ - θ₀‖² towards the present weights, so that all is as the scores have it except that
    nothing is linear; `leave_one_out` is the test without it. Takes seconds for a small model:
    each retraining costs some dozens of gradients of the training data.

    Args:
        model, train, method, damping, curvature: as in `influence`.
        test: examples to explain. Default: the three training examples with the largest loss.
        removals: how many examples to leave out, see `leave_one_out`; 0 for none.
        seed: of the random direction and the random examples.
        tol, max_iter, batch_size, verbose: as in `leave_one_out`.

    Returns:
        `Verification`; print it.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
        As `inverse_hvp`, from the solve.
    """
    check_number("removals", removals, integer=True)
    check_number("seed", seed, integer=True)
    check_number("damping", damping)
    minimiser = Minimiser(model, train, tol, max_iter, 0.0, batch_size)
    rng = np.random.default_rng(seed)
    with minimiser.precision():
        hvp_error = _hvp_error(model, train, minimiser, rng, batch_size)
        gradient = _gradient(minimiser)
        if test is None:
            losses = minimiser.outputs(minimiser.session.train)
            worst = minimiser.session.train.subset(np.argsort(-losses, kind="stable")[:3])
            test = tuple(next(iter(worst)))
    settings = {
        "method": method,
        "damping": damping,
        "curvature": curvature,
        "batch_size": batch_size,
    }
    with warnings.catch_warnings():
        # The verdict says so in its own words.
        warnings.simplefilter("ignore", CurvatureWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = api.influence(model, test, train, verbose=verbose, **settings)
        retrained = None
        if removals:
            indices = _some(scores.values, min(removals, minimiser.n), rng)
            retrained = leave_one_out(
                model,
                test,
                train,
                indices,
                tol=tol,
                max_iter=max_iter,
                proximal=damping,
                verbose=verbose,
                **settings,
            )
    found = {
        "hvp_error": hvp_error,
        "gradient": gradient,
        "residual": float(scores.residual.max()),
        "converged": bool(scores.converged.all()),
        "curvature": scores.curvature,
        "damping": scores.damping,
        "retrained": retrained,
    }
    verdict, ok = _verdict(found, asked=curvature)
    return Verification(**found, verdict=verdict, ok=ok)


def _hvp_error(model, train, minimiser, rng, batch_size):
    """‖Hv - finite differences‖ / ‖Hv‖ for a random v: the model's H, the copy's gradients."""
    theta, batches = minimiser.start, minimiser.session.train
    v = rng.standard_normal(theta.shape)
    product = hvp(model, v, train, batch_size=batch_size)
    double = minimiser.session.objective.parameters.dtype.size == 8
    step = (1e-6 if double else 1e-2) * (1 + np.linalg.norm(theta)) / np.linalg.norm(v)

    def at(t):
        return minimiser.value_and_gradient(theta + t * step * v, minimiser.session, ())[1]

    truth = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    minimiser.assign(theta)
    return float(np.linalg.norm(product - truth) / max(np.linalg.norm(truth), 1e-300))


def _gradient(minimiser):
    """‖∇L‖ in units of one example's part of it."""
    session = minimiser.session
    _, gradient = minimiser.value_and_gradient(minimiser.start, session, ())
    return float(np.linalg.norm(gradient) / minimiser.one_example())


def _some(values, count, rng):
    """The examples with the largest scores, and as many others at random."""
    order = np.argsort(-np.abs(values).max(0), kind="stable")
    strongest, others = order[: -(-count // 2)], order[-(-count // 2) :]
    return np.concatenate([strongest, rng.permutation(others)[: count // 2]])


def _verdict(found, asked):
    """Sentences about what was found, and whether all of it is good."""
    solved = found["converged"]
    exact = found["hvp_error"] < _HVP_TOLERANCE
    sentences = [
        f"Hessian products {'agree' if exact else 'do NOT agree'} with finite differences of the "
        f"gradient: relative error {found['hvp_error']:.1e}.",
        f"The solves {'converged' if solved else 'did NOT reach their tolerance'}: residual "
        f"{found['residual']:.1e} with damping {found['damping']:g} and curvature "
        f"{found['curvature']!r}.",
    ]
    if not exact:
        sentences[0] += (
            " Where a network has kinks (ReLU, max pooling) a part of this is theirs; 0.1 or more "
            "means that a gradient is wrong: a custom gradient, or a stopped one."
        )
    if found["curvature"] != asked and asked == "auto" and found["curvature"] == "gauss_newton":
        sentences[1] += " The Hessian is not positive definite here, so Gauss-Newton was used."
    sentences.append(_about_gradient(found["gradient"]))
    if found["retrained"] is None:
        return tuple(sentences), exact and solved
    words, true = _about_retraining(found["retrained"], found["damping"])
    return (*sentences, words), exact and solved and true


def _about_gradient(gradient):
    at = f"the gradient is {gradient:.2g} times what one example contributes to it."
    if gradient < 0.1:
        return f"The model is at a minimum of its training loss: {at}"
    if gradient < 10:
        return f"The model is close to a minimum of its training loss: {at}"
    return (
        f"Training stopped away from a minimum: {at} Scores are about the quadratic model around "
        "the weights as they are."
    )


def _about_retraining(result, damping):
    """What the retrainings say, in words, and whether they confirm the scores."""
    pull = f", with damping {damping:g} as a pull to the present weights" if damping else ""
    start = (
        f"Leaving {len(result.indices)} examples out in earnest{pull}: Pearson "
        f"{result.pearson:.3f}, slope {result.slope:.2f}."
    )
    left = max(result.gradients.max(), result.base_gradient)
    if left > 0.1:
        start += (
            f" L-BFGS left {left:.2g} of what a removal does to the gradient (kinks of a ReLU, or "
            "`max_iter`), so these numbers are rough."
        )
    if result.pearson > 0.95 and 0.8 < result.slope < 1.25:
        return f"{start} Scores predict retraining, in size too.", True
    if result.pearson > 0.8:
        return (
            f"{start} Rankings can be trusted, sizes less: the loss is not quadratic over the "
            "way that a removal goes. More `damping` or L2 shortens it."
        ), False
    return (
        f"{start} Scores do NOT predict retraining here. Train to convergence, add L2 "
        "regularisation, or raise `damping`; rankings over many test examples may still be of "
        "use, see `lds`."
    ), False
