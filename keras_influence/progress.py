"""Progress bars, by Keras's own `Progbar`."""

import time

import keras

# With verbose="auto", work shorter than this many seconds stays silent.
_PATIENCE = 1.0


class Progress:
    """Shows the stages of a long computation.

    Args:
        verbose: 0 is silent, 1 and 2 always show bars, "auto" shows them where Keras
            shows its own, once a stage has taken longer than a second.
    """

    def __init__(self, verbose="auto"):
        if not isinstance(verbose, (str, int)) or verbose not in ("auto", 0, 1, 2):
            raise ValueError(
                f"`verbose` should be 'auto', 0, 1 or 2. Received: verbose={verbose!r}"
            )
        shown = keras.config.is_interactive_logging_enabled() if verbose == "auto" else verbose > 0
        self._shown = shown
        self._patience = _PATIENCE if verbose == "auto" else 0.0

    def stage(self, title, total=None):
        """Begin a stage; call the result as `step(count, **values)`, then `step.close()`.

        A value that is NaN is not shown.
        """
        return _Stage(title, total, self._patience) if self._shown else _silent

    def over(self, iterable, title, total):
        """Iterate, with a bar."""
        step = self.stage(title, total)
        for count, item in enumerate(iterable, 1):
            yield item
            step(count)
        step.close()


class _Stage:
    def __init__(self, title, total, patience):
        self._title, self._total = title, total
        self._due = time.monotonic() + patience
        self._bar = None
        self._count = 0

    def __call__(self, count, **values):
        self._count = int(count)
        if self._bar is None:
            if time.monotonic() < self._due:
                return
            print(self._title)
            self._bar = keras.utils.Progbar(self._total, interval=0.2)
        # Shown as they are, not as means; not every step has them, or knows them: then they are NaN.
        values = {name: value for name, value in values.items() if value == value}
        self._bar.stateful_metrics.update(values)
        finished = self._count == self._total
        self._bar.update(self._count, list(values.items()), finalize=finished)

    def close(self):
        if self._bar is not None and self._count != self._total:
            self._bar.update(self._count, finalize=True)


class _Silent:
    def __call__(self, count, **values):
        pass

    def close(self):
        pass


_silent = _Silent()
