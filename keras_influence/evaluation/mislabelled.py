"""Finding wrong labels: how many are found for how much checking."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_influence.evaluation.retraining import Retraining
from keras_influence.evaluation.study import as_arguments
from keras_influence.questions.self_influence import self_influence
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.validate import as_positions, check_number

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MislabelCurve:
    """Wrong labels found, against examples checked in the order of each ranking.

    Attributes:
        found: dict from ranking to (n_train,) array: fraction of the wrong labels that are among
            the first 1, 2, ... n examples. "random" is the expectation.
        scores: dict from ranking to (n_train,) scores, largest = most suspicious.
        wrong: (n_train,) bool.
    """

    found: dict
    scores: dict
    wrong: np.ndarray

    @property
    def area(self):
        """Area under each curve, both axes from 0 to 1: random is 1/2; see also `best_area`."""
        # By the trapezoidal rule, from no example checked to all n.
        return {k: float((v.sum() - v[-1] / 2) / len(v)) for k, v in self.found.items()}

    @property
    def best_area(self):
        """The area if all wrong labels came first."""
        return float(1 - self.wrong.mean() / 2)

    def found_after(self, fraction):
        """Fraction of the wrong labels found after checking this fraction of all examples."""
        check_number("fraction", fraction)
        if fraction > 1:
            raise ValueError(f"`fraction` should be at most 1. Received: fraction={fraction}")
        checked = round(fraction * len(self.wrong))
        return {k: float(v[checked - 1]) if checked else 0.0 for k, v in self.found.items()}

    def __repr__(self):
        share = self.wrong.mean()
        lines = [
            f"MislabelCurve: {self.wrong.sum()} of {len(self.wrong)} labels are wrong",
            f"  found after checking   {share:.0%}     {2 * share:.0%}    area (best "
            f"{self.best_area:.3f})",
        ]
        first, second = self.found_after(share), self.found_after(min(1.0, 2 * share))
        for name, area in self.area.items():
            lines.append(f"  {name:<22} {first[name]:.3f}   {second[name]:.3f}  {area:.3f}")
        return "\n".join(lines)

    def plot(self):
        """Fraction of wrong labels found against fraction of examples checked.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_influence.report import plots

        return plots.mislabelled(self)


def plant_wrong_labels(y, fraction=0.1, *, seed=0):
    """Give a random part of some labels another class, drawn evenly from the other classes.

    Args:
        y: (n,) or (n, 1) integer labels, or (n, classes) one-hot rows.
        fraction: of the labels, in (0, 1).
        seed: of the choice.

    Returns:
        `(labels, wrong)`: labels in the form of `y`, and an (n,) mask of those that changed.

    Raises:
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    check_number("fraction", fraction, strict=True)
    check_number("seed", seed, integer=True)
    if fraction >= 1:
        raise ValueError(f"`fraction` should be less than 1. Received: fraction={fraction}")
    y = _labels(y)
    one_hot = y.ndim == 2 and y.shape[1] > 1
    classes = np.arange(y.shape[1]) if one_hot else np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"`y` should have two classes or more. Received: {len(classes)}")
    flat = y.argmax(1) if one_hot else np.searchsorted(classes, y.reshape(-1))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(flat))[: max(1, round(fraction * len(flat)))]
    flat[chosen] = (flat[chosen] + rng.integers(1, len(classes), len(chosen))) % len(classes)
    wrong = np.zeros(len(flat), bool)
    wrong[chosen] = True
    if one_hot:
        return np.eye(len(classes), dtype=y.dtype)[flat], wrong
    return classes[flat].reshape(y.shape).astype(y.dtype), wrong


def _labels(y):
    """Labels as an array of whole numbers, or of rows with a single one."""
    expected = "`y` should be integer labels (n,) or one-hot labels (n, classes)."
    try:
        y = np.asarray(y)
    except ValueError as error:  # Of several outputs, which differ in shape.
        raise TypeError(f"{expected} Received: {type(y).__name__}") from error
    sound = y.ndim in (1, 2) and y.dtype.kind in "biuf" and bool((y == np.round(y)).all())
    if sound and y.ndim == 2 and y.shape[1] > 1:
        sound = bool(np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all())
    if not sound:
        raise TypeError(f"{expected} Received: {y.dtype} of shape {y.shape}")
    return y


@takes(Settings)
def mislabel_curve(
    model: Any,
    train: Any,
    wrong: Any = None,
    *,
    fraction: float = 0.1,
    seed: int = 0,
    fit: Any = None,
    rankings: dict[str, Any] | None = None,
    tol: float = 1e-3,
    max_iter: int = 5000,
    **settings: Unpack[SettingsArguments],
) -> MislabelCurve:
    """How many wrong labels are found by checking the most suspicious examples first.

    Ranks by self-influence, by training loss and at random (Koh & Liang 2017, section 5.4,
    where the loss is the baseline that has to be beaten).

    Args:
        model: a built, compiled `keras.Model`. With `wrong`, trained on `train`. Not changed.
        train: the training data; `(x, y)` arrays if labels are to be planted.
        wrong: which labels are known to be wrong, positions or a mask. None: a `fraction` of
            the labels is changed at random, and a copy of the model is trained on them.
        fraction: of the labels to change, if `wrong` is None.
        seed: of the planted labels, and of `fit`.
        fit: as in `leave_one_out`; trains the copy on `(x, y)`. None: L-BFGS to the minimum.
        rankings: dict from a name to (n_train,) scores of one's own, largest = most suspicious.
        tol, max_iter: as in `leave_one_out`.
        **settings: as in `leave_one_out`; class weights weigh the losses too.

    Returns:
        `MislabelCurve`.

    Raises:
        As `leave_one_out`.
    """
    chosen, retraining = Settings.of(settings), Retraining(fit, (0,), tol, max_iter)
    if wrong is None:
        labelled, wrong = _planted(train, fraction, seed)
        scores = _retrained(model, labelled, retraining, chosen, seed)
    else:
        scores = _suspicion(model, train, chosen)
        wrong = _mask(wrong, len(scores["loss"]))
    scores |= _checked(rankings, len(wrong))
    found = {name: np.cumsum(wrong[np.argsort(-v, kind="stable")]) for name, v in scores.items()}
    found = {name: count / wrong.sum() for name, count in found.items()}
    found["random"] = np.arange(1, len(wrong) + 1) / len(wrong)
    return MislabelCurve(found, scores, wrong)


def _retrained(model, train, retraining, settings, seed):
    """`_suspicion` of a copy of the model that has been trained on `train`."""
    trainer = retraining.trainer(model, train, settings)
    with trainer.precision():
        trainer.base(seed)
        return _suspicion(trainer.model, train, trainer.settings_of_copy(settings))


def _suspicion(model, train, settings):
    """What makes training examples suspicious: self-influence and loss, (n_train,) each."""
    # With the loss itself, also where its smooth version stands in for derivatives.
    problem = dataclasses.replace(settings, curvature="hessian").problem(model, train)
    suspicion = self_influence(model, train, **as_arguments(settings))
    return {"self-influence": suspicion, "loss": problem.losses(problem.train)}


def _planted(train, fraction, seed):
    """The training data with wrong labels, and which ones they are."""
    if not isinstance(train, tuple) or len(train) < 2 or np.ndim(train[0]) == 0:
        raise TypeError(
            "`train` should be a tuple (x, y) of arrays where wrong labels are planted. "
            f"Received: {type(train).__name__}. Or say with `wrong` which labels are known to be."
        )
    labels, wrong = plant_wrong_labels(train[1], fraction, seed=seed)
    return (train[0], labels, *train[2:]), wrong


def _mask(wrong, n):
    mask = np.zeros(n, bool)
    mask[as_positions(wrong, n, "wrong")] = True
    return mask


def _checked(rankings, n):
    """A user's rankings as a dict of (n,) arrays."""
    if rankings is None:
        return {}
    if not isinstance(rankings, dict):
        raise TypeError(
            "`rankings` should be a dict from a name to (n_train,) scores. "
            f"Received: {type(rankings).__name__}"
        )
    arrays = {name: np.asarray(values, np.float64) for name, values in rankings.items()}
    for name, values in arrays.items():
        if values.shape != (n,) or not np.isfinite(values).all():
            raise ValueError(
                f"`rankings[{name!r}]` should be {n} finite numbers. Received: shape {values.shape}"
            )
    return arrays
