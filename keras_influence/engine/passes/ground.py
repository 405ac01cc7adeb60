"""What a pass needs besides data and values; it travels to where the data are."""

import dataclasses

import numpy as np

from keras_influence.engine.kernels.objective import Objective
from keras_influence.engine.loss.facts import Facts
from keras_influence.engine.loss.looks import near


@dataclasses.dataclass(frozen=True, eq=False)
class Ground:
    """A model's loss with its derivatives, and what was found out about it on its data.

    Attributes:
        objective: the `Objective`.
        facts: what holds for the loss on the training data, `Facts`; None while that is found out.
        few: a few examples of them, as a batch, on which kernels are certified.
        certified: what has been certified so far, in this process.
    """

    objective: Objective
    facts: Facts
    few: tuple
    certified: set = dataclasses.field(default_factory=set, repr=False)

    def losses_of_few(self):
        """(b,) losses of the few examples by themselves."""
        return self.objective.losses(self.few, self.facts.own()).numpy()

    def __reduce__(self):
        if self.facts is None:
            return Ground, (self.objective, None, None)
        about = self.objective, self.facts, self.few
        return _arrived, (*about, self.losses_of_few())


def _arrived(objective, facts, few, losses):
    """A `Ground` from another process, held to what its few examples lost there."""
    ground = Ground(objective, facts, few)
    found = ground.losses_of_few()
    if not near(np.asarray(losses), found):
        raise RuntimeError(
            "`model` gives other losses in another process than it gives here: "
            f"{found.tolist()}, not {np.asarray(losses).tolist()}. Does it, or its loss, read "
            "something that is not part of it, as a global variable or a file?"
        )
    return ground
