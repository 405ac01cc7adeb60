"""The rows of the LDS table: name -> (function(model, test, train, target) -> scores, models).

`models` says over how many reference models the scores are also averaged. A new method is
one line.
"""

import keras_influence as ki
from keras_influence import CG, Nystrom


def influence(damping, curvature="gauss_newton", method=None):
    """Influence with these settings, as a function of (model, test, train, target)."""
    # Scores need no more than a few digits.
    method = method or CG(tol=1e-2, max_iter=300, preconditioner=None)

    def compute(model, test, train, target):
        return ki.influence(
            model,
            test,
            train,
            target=target,
            damping=damping,
            curvature=curvature,
            method=method,
            verbose=0,
        )

    return compute


METHODS = {
    "Gauss-Newton, CG, damping 0.001": (influence(1e-3), 1),
    "Gauss-Newton, CG, damping 0.01": (influence(1e-2), 5),
    "Gauss-Newton, CG, damping 0.1": (influence(1e-1), 5),
    "Gauss-Newton, CG, damping 1": (influence(1.0), 1),
    "Gauss-Newton, Nystrom(200), damping 0.1": (influence(1e-1, method=Nystrom(200, tol=9.0)), 1),
    "gradient dot product (damping 1e6)": (influence(1e6), 5),
}
