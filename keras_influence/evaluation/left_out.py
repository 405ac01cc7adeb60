"""Leave-one-out: what was predicted, against what retraining does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.agreement import pearson, slope, spearman
from keras_influence.evaluation.retraining import Retraining
from keras_influence.evaluation.study import Study
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import as_positions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LeaveOneOut:
    """Predicted and actual changes of test losses when single training examples are left out.

    Attributes:
        predicted: (n_test, n_indices) scores.
        actual: (n_test, n_indices): test loss after retraining without the example, minus before.
        indices: (n_indices,) positions in the training data.
        how: how the models were retrained.
        base_gradient: norm of the gradient at the base, relative to what one removal does to
            it; NaN for a `fit` of one's own.
        gradients: (n_indices,) norm of the gradient after each retraining, relative to its
            norm before; NaN likewise.
        target: "test loss", or the name of the function.
        outside: paths of the weights that retraining took outside of their constraint, which
            L-BFGS does not know.
    """

    predicted: np.ndarray
    actual: np.ndarray
    indices: np.ndarray
    how: str
    base_gradient: float
    gradients: np.ndarray
    target: str = "test loss"
    outside: tuple = ()

    @property
    def pearson(self):
        """Pearson correlation of predicted and actual, all entries together."""
        return pearson(self.predicted, self.actual)

    @property
    def spearman(self):
        """Spearman correlation of predicted and actual, all entries together."""
        return spearman(self.predicted, self.actual)

    @property
    def slope(self):
        """Slope of the least-squares line of actual on predicted: 1 if the scale is right."""
        return slope(self.predicted, self.actual)

    def __repr__(self):
        n_test, count = self.actual.shape
        exact = np.isfinite(self.gradients).all()
        remains = (
            f"  gradient      {np.max(self.gradients):.1e} of a removal's is left, at most; "
            f"{self.base_gradient:.1e} at the base\n"
            if exact
            else ""
        )
        return (
            f"LeaveOneOut: {count} training examples left out, {n_test} test examples\n"
            f"  values        change of {self.target}; positive: the example was helpful\n"
            f"  retrained by  {self.how}\n{remains}"
            f"  Pearson       {self.pearson:.4f}\n"
            f"  Spearman      {self.spearman:.4f}\n"
            f"  slope         {self.slope:.4f}, of actual on predicted; 1 if the scale is right"
        )

    def plot(self):
        """A scatter of actual against predicted, with the line where they are equal.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import plots

        return plots.leave_one_out(self)


@takes(Settings)
def leave_one_out(
    model: Any,
    test: Any,
    train: Any,
    indices: Any,
    *,
    scores: Any = None,
    target: Any = None,
    fit: Any = None,
    seeds: Any = (0,),
    tol: float = 1e-3,
    max_iter: int = 5000,
    proximal: float = 0.0,
    **settings: Unpack[SettingsArguments],
) -> LeaveOneOut:
    """Retrain without each of some training examples, and compare with the prediction.

    "Left out" means sample weight 0 with n unchanged. Without `fit`, a float64 copy of the
    model first goes to the minimum of its compiled loss by SciPy's L-BFGS; the scores are
    those of that minimum; and each retraining starts from it. For a convex model the actual
    change is then exact. For others it is that of the nearest minimum: training that goes
    on, not training from scratch, for which give `fit`.

    Args:
        model, test, train, target: as in `influence`.
        indices: positions in `train` of the examples to leave out, or a boolean mask.
        scores: a (n_test, n_train) matrix to judge, from `influence` or anywhere else.
            Default: `influence` with the settings below.
        fit: `fit(model, data)`, which trains a newly initialised model in place, with
            `model.fit(**data, ...)` for example: `data` is a dict of x, y and sample_weight,
            class weights included. Keras's random seed is set before. `train` should be
            arrays then.
        seeds: for `fit`. Differences are taken seed by seed, and averaged.
        tol: stop when the gradient is this fraction of what the removal did to it.
        max_iter: L-BFGS iterations; a `ConvergenceWarning` says if they were too few.
        proximal: ρ >= 0; ½ρ‖θ - θ₀‖², with θ₀ the weights of `model`, is added to the loss
            throughout. With ρ = `damping`, the scores are the first order of exactly this:
            how a deep net with no minimum near by answers a removal (compare Bae et al. 2022).
        **settings: as in `influence`, and with the same meaning for retraining: it minimises
            the loss with these class weights, and trains the weights that `variables` selects.

    Returns:
        `LeaveOneOut`.

    Raises:
        ValueError, TypeError: an argument is not usable, or Keras cannot copy the model; the
            message names it.
        As `inverse_hvp`, from the solve.
    """
    chosen = Settings.of(settings)
    retraining = Retraining(fit, seeds, tol, max_iter, proximal)
    study = Study(model, test, train, target, retraining, chosen)
    indices = as_positions(indices, study.n, "indices")
    scores = study.scores(scores)
    actual, minima = study.changes(indices[:, None])
    base, left, outside = np.nan, np.full(len(indices), np.nan), ()
    if fit is None:
        base, left = _gradients_left(study.base, minima)
        outside = tuple(sorted({path for m in (study.base, *minima) for path in m.outside}))
    about = study.how, base, left, study.target, outside
    return LeaveOneOut(scores[:, indices], actual.T, indices, *about)


def _gradients_left(base, minima):
    """`base_gradient` and `gradients` of a `LeaveOneOut`, from the `Minimum` of the base and of each retraining."""
    usual = np.median([m.before for m in minima])
    left = np.array([m.after / m.before if m.before else 0.0 for m in minima])
    return float(base.after / usual) if usual else 0.0, left
