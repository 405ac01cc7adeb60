"""Stochastic iterations preconditioned by EK-FAC, as in ASTRA (Wang et al. 2025)."""

from keras_influence.linalg.solvers.ekfac import EKFAC
from keras_influence.linalg.solvers.lissa import LiSSA


class ASTRA(LiSSA):
    """`LiSSA` whose minibatch steps are preconditioned by `EKFAC`.

    The Neumann series of ASTRA (arXiv 2507.14740) runs in the basis where EK-FAC has made
    the curvature nearly the identity, so that few steps go far; here with the tuning, the
    certified residual and the guard of `LiSSA`. It goes on from EK-FAC's answer towards the
    exact one for as many passes as are allowed.

    Args:
        batch_size: examples in each minibatch.
        seed: of the minibatches and of EK-FAC.
        tol: relative residual to reach.
        max_passes: passes over the data at most.
        pseudo_gradients: for each example, as in `EKFAC`.
    """

    advice = "Raise `max_passes`, `batch_size` or `damping`, or use CG(preconditioner=EKFAC())."
    approximates = "gauss_newton"
    _knobs = "`batch_size` or `damping`"

    def __init__(
        self,
        batch_size: int = 128,
        seed: int = 0,
        tol: float = 1e-2,
        max_passes: float = 100,
        pseudo_gradients: int = 1,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            tol=tol,
            max_passes=max_passes,
            preconditioner=EKFAC(pseudo_gradients, seed),
        )
        self.pseudo_gradients = pseudo_gradients
