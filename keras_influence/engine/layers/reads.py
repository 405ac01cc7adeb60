"""What a model and its loss read besides weights and data, at one time."""

from keras_influence import _keras
from keras_influence.checksums import fingerprint_of_weights
from keras_influence.described import changed

# What to say where one is not as it was.
VARIABLE = "a variable that the loss or a layer reads has changed"


class Reads:
    """The values that a model's layers and losses read, as they were when this was made.

    Args:
        objective: an `Objective` whose values of a few examples have been computed.
        few: these examples, as a batch.
        facts: the `Facts` of the loss.

    Attributes:
        values: the plain ones, by name; see `_keras.values_of`.
    """

    def __init__(self, objective, few, facts):
        self._objective = objective
        self.values = _keras.values_of(objective.model())
        self._variables = objective.variables_read()
        before = self.variables()
        if self._variables:
            # A counter, the state of a generator: to compute the loss changes it.
            objective.at_ones(few, facts.own())
            pairs = zip(self._variables, before, self.variables())
            self._variables = [v for v, a, b in pairs if a == b]
        self._before = self.variables()

    def variables(self):
        """Checksums of the variables that are not the model's, as they are now."""
        return [fingerprint_of_weights([v]) for v in self._variables]

    def change(self):
        """What is not as it was, in words; "" if nothing."""
        name = changed(self.values, _keras.values_of(self._objective.model()))
        if name:
            return f"`{name}`, which the model or its loss reads, has changed"
        return VARIABLE if self.variables() != self._before else ""
