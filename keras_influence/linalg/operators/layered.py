"""Who asks for the layers of an operator."""

from keras_influence.linalg.operators.base import LinearOperator
from keras_influence.linalg.operators.metered import Metered
from keras_influence.linalg.operators.network import Network


def layered(operator: LinearOperator) -> Network:
    """What the layers know of an operator.

    Raises:
        ValueError: it has none.
    """
    if operator.network is not None:
        return operator.network
    inner = operator.operator if isinstance(operator, Metered) else operator
    raise ValueError(
        "EKFAC, and so ASTRA and CG(preconditioner=EKFAC()), should be given the curvature of a "
        "network's layers on all of its training data. Received: "
        f"{type(inner).__name__}, whose layers are not known: a matrix, or a curvature that "
        "some examples were taken out of (order=2). Use another method, such as 'cg', or order=1."
    )
