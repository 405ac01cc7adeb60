"""Consecutive batches of a data set."""


class Run:
    """Consecutive batches of a data set, which a pass takes in one go.

    Args:
        batches: an iterable of batches.
        number: of the first batch in the data set.
        start: the position of the first example in it.
    """

    def __init__(self, batches, number=0, start=0):
        self._batches, self.number, self.start = batches, number, start

    def __iter__(self):
        return iter(self._batches)
