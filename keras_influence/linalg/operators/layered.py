"""Curvature that is known layer by layer: what EK-FAC is made of."""

from typing import NamedTuple, Protocol, runtime_checkable

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.kronecker import AnyBlock
from keras_influence.linalg.factors.rows import Rows
from keras_influence.linalg.operators.base import LinearOperator

# Bytes that contributions may take.
BYTES = 2**29


class Contributions(NamedTuple):
    """How many contributions of single examples are worth their cost.

    Attributes:
        rank: how many.
        whole: whether these are all.
        operations: floating-point operations of their inner products.
    """

    rank: int
    whole: bool
    operations: float


@runtime_checkable
class Layered(Protocol):
    """A network's curvature, whose diagonal blocks are close to Kronecker products.

    Attributes:
        n: number of examples that it is the curvature of.
    """

    n: int

    def kronecker(self, pseudo_gradients: int, seed: int) -> tuple[AnyBlock, ...]:
        """Blocks without damping, which together cover all positions.

        Args:
            pseudo_gradients: how many for each example.
            seed: of these.
        """
        ...

    def layers_are_worth_it(self) -> bool:
        """Whether the blocks precondition well for what they cost to make and to apply."""
        ...

    def coupling(self, blocks: tuple[AnyBlock, ...], chosen: Array, draws: int, seed: int) -> Array:
        """The matrix itself, without damping, in some of the blocks' coordinates, (R, R).

        Args:
            blocks: from `kronecker`.
            chosen: (R,) which ones, sorted, in the order of the blocks.
            draws: how many pseudo-gradients to estimate it from.
            seed: of these.
        """
        ...

    def contributions_worth_it(self) -> Contributions | None:
        """How many contributions precondition well for what they cost; None if they do not."""
        ...

    def regulariser(self) -> Array:
        """(p,) diagonal of the part of the matrix that is there without any example."""
        ...

    def contributions(self, most: int, nbytes: float) -> tuple[Rows, ...]:
        """The strongest contributions of single examples, rows g of a sum of g gᵀ.

        Args:
            most: how many at most.
            nbytes: how many bytes they may take.
        """
        ...


def layered(operator: LinearOperator) -> Layered:
    """The operator, if it has layers.

    Raises:
        ValueError: it has none.
    """
    if isinstance(operator, Layered):
        return operator
    raise ValueError(
        "EKFAC, and so ASTRA and CG(preconditioner=EKFAC()), should be given the curvature of a "
        "network's layers on all of its training data. Received: "
        f"{type(operator).__name__}, whose layers are not known: a matrix, or a curvature that "
        "some examples were taken out of (order=2). Use another method, such as 'cg', or order=1."
    )
