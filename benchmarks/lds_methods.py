"""The rows of the LDS table: name -> (function(protocol, model, test, train) -> scores, models).

`models` says over how many reference models the scores are also averaged. A new method is
one line.
"""

import keras_influence as ki
from keras_influence import CG, EKFAC, MINRES, Nystrom

# Relative residual of the iterative rows.
TOL = 0.05


def influence(damping, curvature="gauss_newton", method=None):
    """Influence with these settings, as a function of (protocol, model, test, train)."""

    def compute(protocol, model, test, train):
        return ki.influence(
            model,
            test,
            train,
            target=protocol.target,
            damping=damping,
            curvature=curvature,
            method=method or CG(tol=TOL),
            verbose=0,
        )

    return compute


def of_training(protocol, model, test, train):
    """As damping="training", which asks the optimizer; these were trained in a loop without one."""
    return influence(1 / protocol.time(len(train[1])))(protocol, model, test, train)


def tracin(protocol, model, test, train):
    """Of a copy of the model, trained anew with eleven checkpoints."""
    copy, checkpoints = protocol.traced(model, train, every=protocol.epochs // 10)
    return checkpoints.influence(copy, test, train, target=protocol.target, verbose=0)


def source(protocol, model, test, train):
    """Of such a copy, which is another training than that of the reference model."""
    copy, checkpoints = protocol.traced(model, train, every=protocol.epochs // 10)
    about = copy, test, train, checkpoints
    method = EKFAC(pseudo_gradients=4)
    return ki.source_influence(*about, method=method, target=protocol.target, verbose=0)


def trak(dim, damping=0.0):
    """TRAK, as a function of (protocol, model, test, train)."""

    def compute(protocol, model, test, train):
        options = {"dim": dim, "damping": damping, "verbose": 0}
        return ki.trak_influence(model, test, train, target=protocol.target, **options)

    return compute


METHODS = {
    "gradient dot product (damping 1e6)": (influence(1e6), 3),
    "Gauss-Newton, CG, damping 1": (influence(1.0), 1),
    "Gauss-Newton, CG, damping 0.1": (influence(0.1), 1),
    "Gauss-Newton, CG, damping 0.01": (influence(0.01), 3),
    "Gauss-Newton, CG, damping 0.001": (influence(0.001), 1),
    "Gauss-Newton, CG, damping of the training": (of_training, 1),
    "Gauss-Newton, Nystrom(200), damping 0.01": (influence(0.01, method=Nystrom(200)), 1),
    "EKFAC(4), damping 0.01": (influence(0.01, method=EKFAC(pseudo_gradients=4)), 1),
    "EKFAC(4), damping 0.001": (influence(0.001, method=EKFAC(pseudo_gradients=4)), 3),
    "EKFAC(4), damping 0.0001": (influence(0.0001, method=EKFAC(pseudo_gradients=4)), 1),
    "TracIn, 11 checkpoints": (tracin, 3),
    "SOURCE, 3 segments, EKFAC(4), 11 checkpoints": (source, 3),
    "TRAK, 512 dimensions": (trak(512), 3),
    "TRAK, 2,048 dimensions, damping 1": (trak(2048, 1.0), 3),
    "Hessian, MINRES, damping 0.1": (influence(0.1, "hessian", MINRES(tol=TOL)), 1),
    "Hessian, MINRES, damping 0.01": (influence(0.01, "hessian", MINRES(tol=TOL)), 1),
}
