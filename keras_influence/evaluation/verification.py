"""A short check of one's own model: are its scores to be believed, and how far?"""

from __future__ import annotations

import dataclasses
import math
import textwrap
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.copies import CopyError
from keras_influence.engine.curvature.certificate import WrongProductError
from keras_influence.errors import ConvergenceWarning, CurvatureWarning
from keras_influence.evaluation.left_out import LeaveOneOut, leave_one_out
from keras_influence.evaluation.minimiser import Minimiser, one_example
from keras_influence.evaluation.study import as_arguments
from keras_influence.evaluation.verdict import verdict_on
from keras_influence.questions.influence import influence
from keras_influence.questions.products import hvp
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, repr=False)
class Verification:
    """What `verify` found.

    Attributes:
        hvp_error: relative error of a Hessian product against finite differences of gradients;
            NaN if the model could not be copied.
        gradient: norm of the gradient of the training loss, in units of what one training
            example contributes to it (the median). 0 at a minimum.
        residual: largest relative residual of the solves.
        converged: whether all solves reached their tolerance.
        solver: name of the solver.
        approximation: whether that solver has no tolerance to reach, as EK-FAC.
        curvature: which curvature the scores used.
        damping: λ.
        retrained: `LeaveOneOut` of a few retrainings, None if there were none.
        missing: why Keras cannot copy the model, else "".
        verdict: sentences.
        ok: whether all was looked at, and nothing speaks against the scores as predictions of
            retraining.
    """

    hvp_error: float
    gradient: float
    residual: float
    converged: bool
    solver: str
    approximation: bool
    curvature: str
    damping: float
    retrained: LeaveOneOut | None
    missing: str
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
            raise ValueError(
                f"plot() shows retrainings, but Keras cannot copy the model: {self.missing}"
                if self.missing
                else "plot() shows retrainings: call verify(..., removals=8)."
            )
        return self.retrained.plot()


@takes(Settings)
def verify(
    model: Any,
    test: Any,
    train: Any = None,
    *,
    removals: int = 8,
    seed: int = 0,
    tol: float = 1e-2,
    max_iter: int = 100,
    **settings: Unpack[SettingsArguments],
) -> Verification:
    """Check a model's scores in one call, with a verdict in words: `verify(model, train)`.

    Compares a Hessian product with finite differences of the gradient (in float64 where the
    model can be copied so), looks at the gradient that training left and at the residuals of
    the solves, and leaves a few examples out in earnest: half of them those with the largest
    scores, half drawn at random. The damping λ takes part in these retrainings, as a pull
    ½λ‖θ - θ₀‖² towards the present weights, so that all is as the scores have it except that
    nothing is linear; `leave_one_out` is the test without it. Takes seconds for a small model:
    each retraining costs some dozens of gradients of the training data.

    Where Keras cannot copy the model, the first and the last of these are left out; the verdict
    says so, and why.

    Args:
        model, train: as in `influence`. One data set alone is the training data.
        test: examples to explain. None: the three training examples with the largest loss.
        removals: how many examples to leave out, see `leave_one_out`; 0 for none.
        seed: of the random direction and the random examples.
        tol, max_iter: as in `leave_one_out`.
        **settings: as in `influence`.

    Returns:
        `Verification`; print it.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
        As `inverse_hvp`, from the solve.
    """
    check_number("removals", removals, integer=True)
    check_number("seed", seed, integer=True)
    check_number("tol", tol, strict=True)
    check_number("max_iter", max_iter, low=1, integer=True)
    if train is None:  # As in `range(stop)` and `range(start, stop)`.
        test, train = None, test
    chosen, rng = Settings.of(settings), np.random.default_rng(seed)
    hvp_error, gradient, worst, missing = _looked_at(model, train, chosen, rng)
    test = worst if test is None else test
    with warnings.catch_warnings():
        # The verdict says so in its own words.
        warnings.simplefilter("ignore", CurvatureWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = influence(model, test, train, **as_arguments(chosen))
        retrained = None
        if removals and not missing:
            indices = _some(scores.values, min(removals, scores.n_train), rng)
            options = {"tol": tol, "max_iter": max_iter, "proximal": scores.damping}
            options |= as_arguments(dataclasses.replace(chosen, damping=scores.damping))
            retrained = leave_one_out(model, test, train, indices, **options)
    found = {"hvp_error": hvp_error, "gradient": gradient, **_evidence(scores)}
    found |= {"retrained": retrained, "missing": missing}
    sentences, ok = verdict_on(found)
    return Verification(**found, verdict=sentences, ok=ok)


def _evidence(scores):
    """What the scores say of their own solves."""
    return {
        "residual": float(scores.residual.max()),
        "converged": bool(scores.converged.all()),
        "solver": scores.solver["class_name"],
        "approximation": bool(scores.details.get("approximation")),
        "curvature": scores.curvature,
        "damping": scores.damping,
    }


def _looked_at(model, train, settings, rng):
    """The error of a product, the gradient, the three worst examples, and why there is no copy."""
    try:
        minimiser = Minimiser(model, train, settings)
    except CopyError as error:
        problem = dataclasses.replace(settings, curvature="hessian").problem(model, train)
        return math.nan, _gradient(problem), _worst(problem), error.reason
    v = rng.standard_normal(minimiser.start.shape)
    product = _product(model, v, train, settings)  # In the model's own precision, as the data.
    with minimiser.precision():
        error = _hvp_error(product, v, minimiser)
        return error, _gradient(minimiser.problem), _worst(minimiser.problem), ""


def _product(model, v, train, settings):
    """H v; None where a check of it found that it is wrong."""
    about = ("batch_size", "class_weight", "variables")
    try:
        return hvp(model, v, train, **{name: getattr(settings, name) for name in about})
    except WrongProductError:
        return None


def _hvp_error(product, v, minimiser):
    """‖Hv - d‖ / ‖d‖ for a random v, the model's H, and d the differences of the copy's gradients."""
    if product is None:
        return np.inf
    theta = minimiser.start
    double = minimiser.problem.parameters.dtype.size == 8
    step = (1e-6 if double else 1e-2) * (1 + np.linalg.norm(theta)) / np.linalg.norm(v)

    def at(t):
        return minimiser.value_and_gradient(theta + t * step * v, minimiser.problem, ())[1]

    truth = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    minimiser.assign(theta)
    return float(np.linalg.norm(product - truth) / max(np.linalg.norm(truth), 1e-300))


def _gradient(problem):
    """‖∇L‖ in units of one example's part of it."""
    length = np.linalg.norm(problem.value_and_gradient()[1])
    # At a perfect fit both are zero.
    return float(length / one_example(problem)) if length else 0.0


def _worst(problem):
    """The three training examples with the largest loss, as test data."""
    order = np.argsort(-problem.losses(problem.train), kind="stable")
    found = next(iter(problem.train.subset(order[:3])))
    return found if isinstance(found, tuple) else (found,)  # Of inputs alone.


def _some(values, count, rng):
    """The examples with the largest scores, and as many others at random."""
    order = np.argsort(-np.abs(values).max(0), kind="stable")
    strongest, others = order[: -(-count // 2)], order[-(-count // 2) :]
    return np.concatenate([strongest, rng.permutation(others)[: count // 2]])
