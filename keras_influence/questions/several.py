"""One model or several: which a question is put to, and whether results of several have a mean."""

from __future__ import annotations

from typing import Any


def is_several(model: Any) -> bool:
    """Whether `model` is a list of models.

    Raises:
        ValueError: it is a list of fewer than two.
    """
    if not isinstance(model, (list, tuple)):
        return False
    if len(model) < 2:
        raise ValueError(
            f"`model`, given as a list, should have two models or more. Received: {len(model)}"
        )
    return True


def check_alike(parts: list[Any], kind: type) -> None:
    """Refuse results of several models that have no mean.

    Args:
        parts: what should be two results or more, about the same examples and target.
        kind: their class.

    Raises:
        ValueError, TypeError: they are not; the message names `parts`.
    """
    if len(parts) < 2:
        raise ValueError(
            f"`parts` should be the scores of two models or more. Received: {len(parts)}"
        )
    if not all(isinstance(part, kind) for part in parts):
        kinds = sorted({type(part).__name__ for part in parts})
        raise TypeError(f"`parts` should be `{kind.__name__}`. Received: {', '.join(kinds)}")
    about = {(part.values.shape, part.target) for part in parts}
    if len(about) > 1:
        raise ValueError(
            "`parts` should be about the same examples and the same target. Received scores of "
            f"{sorted(f'{shape[0]} test x {shape[1]} training examples, {of}' for shape, of in about)}"
        )
