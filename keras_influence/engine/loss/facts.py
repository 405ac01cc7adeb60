"""What holds of a model's loss on one data set, and belongs to it; see `finding`."""

import dataclasses

from keras_influence.engine.loss.compiled import Weighting
from keras_influence.engine.loss.readings import Compiled
from keras_influence.engine.loss.terms import MEAN, SUM

LEFT_OUT = "left out"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What holds for the loss of one model on one data set of n examples.

    Attributes:
        reading: how `compute_loss` is read as a sum over examples; see `readings`.
        added: what layers add by `add_loss`: "nothing", the same for each batch ("constant"),
            a "mean" or a "sum" over the examples of a batch, or "mixed", none of these.
        n: number of examples.
        totals: for each term of the loss, n divided by what Keras would divide it by if all of
            the data were one batch.
    """

    reading: object
    added: str
    n: int
    totals: tuple

    @property
    def adds_by_example(self):
        """Whether what layers add is part of what an example contributes."""
        return self.added in (MEAN, SUM)

    @property
    def sums(self):
        """Whether the loss is a sum over the examples, not a mean."""
        return bool(self.totals) and all(total == float(self.n) for total in self.totals)

    @property
    def adds(self):
        """Whether layers add something that depends on the data."""
        return self.added in (MEAN, SUM, "mixed")

    @property
    def leaves_no_remainder(self):
        """Whether nothing but the weights' regularisers is there without any example."""
        return isinstance(self.reading, Compiled) and self.added != "constant"

    def without_added(self):
        """The same with what layers add left out of the objective."""
        return dataclasses.replace(self, added=LEFT_OUT)

    def train(self):
        """The weighting of n L, the objective of all of the data as one batch."""
        if self.added == LEFT_OUT:
            return Weighting(rest=1.0, total=self.totals)
        by_sum = float(self.added == SUM)
        return Weighting(
            added=1.0 - by_sum,
            added_sum=self.n * by_sum,
            alone=self.n / 2 if by_sum else 1.0,
            rest=1.0,
            total=self.totals,
        )

    def examples(self):
        """The weighting of what the examples contribute to n L."""
        train = self.train()
        return train._replace(added=train.added * self.adds_by_example, rest=0.0)

    def added_alone(self):
        """The weighting of what layers add to n L for the data."""
        return self.train()._replace(rest=0.0, total=self._no_terms())

    def remainder(self):
        """The weighting of what is in n L whatever the examples are."""
        constant = float(self.added == "constant")
        return Weighting(added=constant, rest=1.0, total=self._no_terms())

    def own(self):
        """The weighting in which each example counts by its own loss, as a batch of one."""
        alone = 0.5 if self.added == SUM else 1.0
        return Weighting(own=1.0, alone=alone, total=self._no_terms())

    def _no_terms(self):
        """The factors that leave all terms of the loss out."""
        return (0.0,) * len(self.totals)
