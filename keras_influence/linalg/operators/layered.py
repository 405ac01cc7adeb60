"""Curvature that is known layer by layer: what EK-FAC is made of."""

from typing import Protocol, runtime_checkable

from keras_influence.linalg.factors.kronecker import Block
from keras_influence.linalg.operators.base import LinearOperator


@runtime_checkable
class Layered(Protocol):
    """A network's curvature, whose diagonal blocks are close to Kronecker products."""

    def kronecker(self, pseudo_gradients: int, seed: int) -> tuple[Block, ...]:
        """The blocks of the layers that are covered, without damping; none may be.

        Args:
            pseudo_gradients: how many for each example.
            seed: of these.
        """
        ...


def kronecker_blocks(
    operator: LinearOperator, pseudo_gradients: int, seed: int
) -> tuple[Block, ...]:
    """The operator's `Layered.kronecker`.

    Raises:
        ValueError: it has no layers.
    """
    if isinstance(operator, Layered):
        return operator.kronecker(pseudo_gradients, seed)
    raise ValueError(
        "EKFAC, and so ASTRA and CG(preconditioner=EKFAC()), should be given the curvature of a "
        "network's layers on all of its training data. Received: "
        f"{type(operator).__name__}, whose layers are not known: a matrix, or a curvature that "
        "some examples were taken out of (order=2). Use another method, such as 'cg', or order=1."
    )
