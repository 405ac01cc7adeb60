"""How models are trained again: to the minimum, or as their user does."""

import collections.abc
import dataclasses

from keras_influence.evaluation.minimiser import Minimiser
from keras_influence.evaluation.trainer import Fitter
from keras_influence.validate import check_number


@dataclasses.dataclass(frozen=True)
class Retraining:
    """The arguments about training that the functions of `keras_influence.evaluation` share.

    Attributes:
        fit: `fit(model, data)`, or None for L-BFGS.
        seeds: of `fit`; L-BFGS needs one only.
        tol, max_iter, proximal: of L-BFGS; see `Minimiser`.

    Raises:
        ValueError, TypeError: one is not usable; the message names it.
    """

    fit: collections.abc.Callable | None = None
    seeds: tuple = (0,)
    tol: float = 1e-3
    max_iter: int = 5000
    proximal: float = 0.0

    def __post_init__(self):
        seeds = _checked_seeds(self.seeds)
        object.__setattr__(self, "seeds", seeds if self.fit is not None else (0,))
        check_number("tol", self.tol, strict=True)
        check_number("max_iter", self.max_iter, low=1, integer=True)
        check_number("proximal", self.proximal)
        if self.fit is None:
            return
        if not callable(self.fit):
            raise TypeError(
                "`fit` should be a function fit(model, data) that trains `model` in place, with "
                f"`model.fit(**data, ...)` for example. Received: {self.fit!r}"
            )
        if self.proximal:
            raise ValueError(
                "`proximal` should be 0 where `fit` is given, which has a loss of its own. "
                f"Received: proximal={self.proximal}"
            )

    def trainer(self, model, train, settings):
        """A `Fitter` if there is a `fit`, else a `Minimiser`."""
        if self.fit is not None:
            return Fitter(model, train, self.fit, settings)
        options = {"tol": self.tol, "max_iter": self.max_iter, "proximal": self.proximal}
        return Minimiser(model, train, settings, **options)


def _checked_seeds(seeds):
    """`seeds` as a tuple of integers."""
    try:
        found = tuple(seeds)
    except TypeError as error:
        raise TypeError(f"`seeds` should be a list of integers. Received: {seeds!r}") from error
    if not found:
        raise ValueError("`seeds` should have at least one seed. Received: an empty list")
    for seed in found:
        check_number("seeds", seed, integer=True)
    if len(set(found)) < len(found):
        raise ValueError(f"`seeds` should be different from each other. Received: {seeds!r}")
    return found
