"""Curvature that is known layer by layer: what EK-FAC is made of."""

from typing import NamedTuple, Protocol

from keras_influence.linalg.arrays import Array
from keras_influence.linalg.factors.blocks import AnyBlock
from keras_influence.linalg.factors.rows import Rows

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


class Network(Protocol):
    """What a network's layers know of its curvature, whose diagonal blocks are close to Kronecker products.

    What it does takes passes over the data, which it does not count: who asks for it does, by
    `LinearOperator.spend`.

    Attributes:
        n: number of examples that it is the curvature of.
    """

    n: int

    def kronecker(self, pseudo_gradients: int, seed: int) -> tuple[AnyBlock, ...]:
        """Blocks without damping, which together cover all positions; two passes a pseudo-gradient.

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

        Of some of the examples: no pass over all of the data.

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

        In as many passes as there are of them for each example.

        Args:
            most: how many at most.
            nbytes: how many bytes they may take.
        """
        ...
