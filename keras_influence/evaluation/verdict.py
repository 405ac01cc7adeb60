"""What `verify` found, in words."""

import math

from keras_influence.agreement import orders_agree, sizes_agree

# Finite differences in float64: about 1e-9 for smooth models, more across the kinks of a ReLU.
_HVP_TOLERANCE = 1e-3


def verdict_on(found):
    """Sentences about what was found, and whether all of it is good.

    Args:
        found: dict of the attributes of a `Verification` up to `missing`.
    """
    exact, about_products = _about_products(found["hvp_error"], found["missing"])
    sentences = [about_products, _about_solves(found), _about_gradient(found["gradient"])]
    if found["retrained"] is not None:
        words, true = _about_retraining(found["retrained"], found["damping"])
        # An approximation is as good as its predictions: there is no tolerance that it missed.
        solved = found["converged"] or found["approximation"]
    else:
        words, true = "", True
        solved = found["converged"] and not found["approximation"]
    return tuple(filter(None, (*sentences, words))), exact and solved and true


def _about_products(error, missing):
    if math.isnan(error):
        return False, (
            "Hessian products were not compared with finite differences of the gradient, and no "
            f"example was left out in earnest: Keras cannot copy the model, since {missing}."
        )
    exact = error < _HVP_TOLERANCE
    words = (
        f"Hessian products {'agree' if exact else 'do NOT agree'} with finite differences of the "
        f"gradient: relative error {error:.1e}."
    )
    if not exact:
        words += (
            " Where a network has kinks (ReLU, max pooling) a part of this is theirs; 0.1 or more "
            "means that a gradient is wrong: a custom gradient, or a stopped one."
        )
    return exact, words


def _about_solves(found):
    system = f"with damping {found['damping']:g} and curvature {found['curvature']!r}"
    residual = f"{found['residual']:.1e}"
    if found["approximation"]:
        worth = (
            "what it is worth, the retrainings below say"
            if found["retrained"] is not None
            else "only retraining can say what it is worth"
        )
        return (
            f"{found['solver']} is an approximation: it leaves a relative residual of {residual} "
            f"{system}; {worth}."
        )
    solved = "converged" if found["converged"] else "did NOT reach their tolerance"
    return f"The solves by {found['solver']} {solved}: residual {residual} {system}."


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
    count = len(result.indices)
    start = f"Leaving {count} example{'s' if count > 1 else ''} out in earnest{pull}: "
    if not math.isfinite(result.pearson):
        return (
            f"{start}there is nothing to correlate, as of a single example, or where leaving examples "
            "out changes nothing (a perfect fit). Whether scores predict retraining cannot be told "
            "from these."
        ), False
    start += f"Pearson {result.pearson:.3f}, slope {result.slope:.2f}."
    left = max(result.gradients.max(), result.base_gradient)
    if left > 0.1:
        start += (
            f" L-BFGS left {left:.2g} of what a removal does to the gradient (kinks of a ReLU, or "
            "`max_iter`), so these numbers are rough."
        )
    if result.outside:
        return (
            f"{start} But L-BFGS knows no constraints, and went outside of that of {', '.join(result.outside)}: "
            "whether scores predict retraining with it cannot be told from these. `leave_one_out` with a `fit` "
            "has the constraint."
        ), False
    if sizes_agree(result.pearson, result.slope):
        return f"{start} Scores predict retraining, in size too.", True
    if orders_agree(result.pearson):
        return (
            f"{start} Rankings can be trusted, sizes less: the loss is not quadratic over the "
            "way that a removal goes. More `damping` or L2 shortens it."
        ), False
    return (
        f"{start} Scores do NOT predict retraining here. Train to convergence, add L2 "
        "regularisation, or raise `damping`; rankings over many test examples may still be of "
        "use, see `lds`."
    ), False
