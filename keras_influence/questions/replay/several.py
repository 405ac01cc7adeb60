"""What several recorded trainings say together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from keras_influence.questions.blocks import Target
from keras_influence.questions.replay.replay import Replay
from keras_influence.questions.scores import InfluenceScores


def replay_influence(
    replays: Iterable[Replay],
    test: Any,
    target: Target | None = None,
    *,
    verbose: int | Literal["auto"] = "auto",
) -> InfluenceScores:
    """The mean of `Replay.influence` over several trainings, with its standard error.

    What trainings agree on that differ in their seeds alone (of the weights, and of the order of
    examples: `Replay(seed=)`) is about the data, and not about one run.

    Args:
        replays: two or more, each of a model of its own, with the same training data in the
            same order.
        test, target, verbose: as in `Replay.influence`.

    Returns:
        `InfluenceScores` with `error`, the standard error of the mean.

    Raises:
        ValueError, TypeError: there are fewer, or they are of other data; and as `Replay.influence`.
    """
    replays = [replays] if isinstance(replays, Replay) else list(replays)
    if not all(isinstance(replay, Replay) for replay in replays):
        kinds = sorted({type(replay).__name__ for replay in replays})
        raise TypeError(f"`replays` should be `Replay`s. Received: {', '.join(kinds)}")
    if len({replay.fingerprint_of_data() for replay in replays}) > 1:
        raise ValueError(
            "`replays` should be of the same training data in the same order, or a mean of their "
            "columns means nothing."
        )
    parts = [replay.influence(test, target, verbose=verbose) for replay in replays]
    return InfluenceScores.averaged(parts)
