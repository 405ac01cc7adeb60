"""A recorded training, run again: forwards with other weights of the examples, and backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_influence.engine.data import rows
from keras_influence.engine.data.orders import Order
from keras_influence.engine.kernels.steps import TrainingStep
from keras_influence.questions.replay.halfway import Halfway
from keras_influence.questions.replay.recording import Recording

# A step's state, and what is given beside it.
Moment = tuple[np.ndarray, list[np.ndarray]]

# How far a state that is run again may be from the one that `fit` left, as a part of the way in
# between; and how much of a state's size rounding may be, in units of the last place.
_TOLERANCES = {4: 1e-2, 8: 1e-6}
_ROUNDING = 8


class Run:
    """The steps of a recorded training up to `stop`.

    Args:
        step: the step of the model.
        recording: what was kept of the training.
        whole: the training data as one batch.
        order: in which the training took them.
        stop: number of steps.
        weights: the weights that they led to, the first part of a state.
        averaged: whether the optimizer's moving average took their place after the last step.

    Attributes:
        step, stop, averaged: as given.
        rounding: the largest difference that was met so far between a state that was run again and
            the one that `fit` left, as a part of the way in between.
        forwards, backwards: steps that were run so far; a step back counts once, whatever the
            number of vectors is.
    """

    def __init__(
        self,
        step: TrainingStep,
        recording: Recording,
        whole: Any,
        order: Order,
        stop: int,
        weights: np.ndarray,
        averaged: bool,
    ) -> None:
        self.step, self._recording, self._whole = step, recording, whole
        self._order, self.stop = order, stop
        self._weights, self.averaged = weights, averaged
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])
        self._saved: list[Halfway] = []
        self.rounding, self.forwards, self.backwards = 0.0, 0, 0

    def positions(self, t: int) -> np.ndarray:
        """Of the examples of step t."""
        number, first = next(e for e in reversed(self._recording.epochs) if e[1] <= t)
        if self._epoch[0] != number:
            self._epoch = number, self._order.epoch(number)
        return self._epoch[1][t - first]

    def details(self) -> dict[str, Any]:
        """What was run, and how near to `fit` it came."""
        return {
            "steps": self.stop,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "rounding": self.rounding,
        }

    # ---- forwards

    def end(
        self, omega: np.ndarray | None = None, on_step: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """The last state if training example j had ω_j times its weight; all ones if not given."""
        moment = self._start(0)
        for t in range(self.stop):
            moment = self._after(moment, t, omega)
            on_step(t + 1)
        return moment[0]

    def _start(self, t: int) -> Moment:
        state, given = self._recording.state(t), self._recording.given(t)
        if state is None or given is None:
            raise ValueError(f"The recording lacks the state before step {t}.")
        return state, given

    def _after(self, moment: Moment, t: int, omega: np.ndarray | None = None) -> Moment:
        where = self.positions(t)
        weights = np.ones(len(where)) if omega is None else omega[where]
        batch = rows.dense(rows.take(self._whole, where))
        state, given = self.step.run(*moment, batch, weights)
        self.forwards += 1
        found = self._recording.given(t + 1)
        return state.numpy(), found or [g.numpy() for g in given]

    def weighs(self) -> bool:
        """Whether the first step is another one, by more than rounding, where no example counts."""
        moment, count = self._start(0), self._order.n
        whole, none = (self._after(moment, 0, w)[0] for w in (np.ones(count), np.zeros(count)))
        rounding = _ROUNDING * np.finfo(whole.dtype).eps * np.linalg.norm(whole)
        return bool(np.linalg.norm(whole - none) > rounding)

    # ---- backwards

    def back(
        self,
        cotangents: np.ndarray,
        together: int,
        on_step: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """∂/∂ω of (k, s) linear functions of the last state, at ω = 1.

        Args:
            cotangents: the functions, as they depend on the last state.
            together: how many of them go through a step at once.
            on_step: called with the number of steps that are done.

        Returns:
            (k, n) array.

        Raises:
            ValueError: a step does not lead to where `fit` went.
        """
        cotangents = np.array(cotangents)
        saved = Halfway(self._recording.folder, cotangents, self.stop, self._order.n)
        cotangents, values, stop = saved.found()
        for t, moment in self._moments(stop):
            where = self.positions(t)
            batch = rows.dense(rows.take(self._whole, where))
            for first in range(0, len(cotangents), together):
                some = slice(first, first + together)
                after, before, weights = self.step.back(*moment, batch, cotangents[some])
                cotangents[some] = before.numpy()
                values[some, where] += weights.numpy()
            self._check(t + 1, after.numpy())
            self.backwards += 1
            saved.maybe(cotangents, values, t)
            on_step(self.stop - t)
        saved.done(values)
        self._saved.append(saved)
        return values

    def forget(self) -> None:
        """What `back` has left to go on with is no longer needed."""
        for saved in self._saved:
            saved.forget()

    def _moments(self, stop: int) -> Iterator[tuple[int, Moment]]:
        """(t, moment before step t) from stop - 1 to the first."""
        for start in reversed(self._recording.kept(stop)):
            yield from self._between(self._start(start), start, stop, self._recording.slots)
            stop = start

    def _between(
        self, first: Moment, start: int, stop: int, slots: int
    ) -> Iterator[tuple[int, Moment]]:
        """The same from stop - 1 to start; what does not fit into `slots` is run again, log-many times."""
        if stop - start <= max(slots, 1):
            moments = [first]
            for t in range(start, stop - 1):
                moments.append(self._after(moments[-1], t))
            for t in range(stop - 1, start - 1, -1):
                yield t, moments.pop()
            return
        middle, moment = (start + stop) // 2, first
        for t in range(start, middle):
            moment = self._after(moment, t)
        yield from self._between(moment, middle, stop, slots - 1)
        yield from self._between(first, start, middle, slots)

    # ---- is it the same training?

    def _check(self, t: int, found: np.ndarray) -> None:
        """Raise unless a state that was run again is the one that `fit` left, up to rounding."""
        known = self._recording.state(t)
        if known is None and t == self.stop and not self.averaged:
            known = self._weights
        if known is None:
            return
        before = self._start(self._recording.kept(t)[-1])[0][: len(known)]
        found = found[: len(known)]
        off, way, size = (np.linalg.norm(v) for v in (found - known, known - before, known))
        part = float(off / way) if way else float(off > 0)
        allowed = _TOLERANCES[known.itemsize] * way + _ROUNDING * np.finfo(known.dtype).eps * size
        if not off <= allowed:
            raise ValueError(
                f"The replayed training is not the one that `fit` did: after {t} of {self.stop} "
                f"steps it is {part:.1e} of the way off, most in {self._culprit(found - known)}. "
                "Give `fit` only `replay.data`, `epochs` and callbacks: `class_weight` belongs to "
                "`Replay`, and no other callback may change weights or the optimizer but for its "
                "learning rate. If it is rounding, raise `budget` or train in float64."
            )
        self.rounding = max(self.rounding, part)

    def _culprit(self, difference: np.ndarray) -> str:
        state = self.step.state
        sizes = [np.linalg.norm(difference[state.part(v)]) for v in state.variables]
        return str(state.variables[int(np.argmax(np.nan_to_num(sizes, nan=np.inf)))].path)
