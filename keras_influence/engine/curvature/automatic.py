"""`damping="auto"`: λ from the spectrum of the curvature."""

from keras_influence.linalg.spectrum import eigenpairs, trace_samples

# In units of the mean eigenvalue, as Grosse et al. (2023, §2.2) set it.
_FRACTION = 0.1


def automatic_damping(curvature, definite):
    """A tenth of the mean eigenvalue, plus what outweighs the most negative one.

    Args:
        curvature: the operator without damping.
        definite: whether it is known to have no negative eigenvalues.

    Returns:
        `(λ, reason)`.

    Raises:
        ValueError: there is no curvature to measure λ by.
    """
    mean = float(trace_samples(curvature, 10, seed=0).mean() / curvature.size)
    damping = _FRACTION * abs(mean)
    reason = f"damping: {_FRACTION:g} of the mean eigenvalue {mean:.2g}"
    if not definite:
        values, _ = eigenpairs(curvature, 1, "SA", tol=1e-2)
        if len(values) and values[0] < 0:
            damping -= 1.1 * float(values[0])
            reason += f" and 1.1 of the most negative one, {values[0]:.2g}"
    if not damping > 0:
        raise ValueError(
            "`damping`='auto' needs curvature that is not zero everywhere. Give a number."
        )
    return damping, reason
