"""All that a report shows, computed in one call, and written."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

from keras_influence.engine.kernels.whole_set import WholeSet
from keras_influence.questions.blocks import Target
from keras_influence.questions.case import Case
from keras_influence.questions.influence import ask_influence
from keras_influence.questions.self_influence import ask_self_influence
from keras_influence.questions.settings import Settings, SettingsArguments, takes
from keras_influence.report.contents import Options
from keras_influence.report.page import check_page, write_page

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes(Settings)
def write_report(
    model: Any,
    path: str | os.PathLike[str],
    test: Any,
    train: Any,
    *,
    target: Target | None = None,
    k: int = 8,
    rows: Any = None,
    suspicious: int = 100,
    class_names: Any = None,
    feature_names: Any = None,
    show: Any = None,
    title: str = "Influence report",
    verification: Any = None,
    **settings: Unpack[SettingsArguments],
) -> pathlib.Path:
    """Explain test examples, and write what was found as one HTML file to explore.

    `influence`, `self_influence`, losses and predictions, then `InfluenceScores.report`. The
    file needs neither network nor server. `model.report(...)` is the same.

    Args:
        model, test, train, target: as in `influence`.
        path: file name, by convention `.html`; its folder must exist.
        k: strongest proponents and opponents to show for each test example.
        rows: positions of the test examples to show, or a mask; by default all, at most the 500
            with the largest loss.
        suspicious: training examples in the list by self-influence, which takes one solve for
            each training example; 0 leaves it out.
        class_names: names in place of the numbers of classes, by list or dict.
        feature_names: names of the features, where x is one vector.
        show: a function of one example's x that returns what to show: text, a picture as an
            array, or a dict of numbers and texts.
        title: the heading.
        verification: what `verify` found; its verdict is shown.
        **settings: as in `influence`.

    Returns:
        The file's path.

    Raises:
        ImportError: Jinja2 or Pillow is missing.
        OSError: the folder of `path` does not exist, or there is a folder of that name.
        And as `influence`.
    """
    if isinstance(target, WholeSet):
        raise ValueError(
            "`target` should be about single examples here: a report shows them one by one. Of a "
            "`WholeSet`, `influence(...).report(path, train=train)` shows what it can."
        )
    options = Options(k, rows, suspicious, class_names, feature_names, show, title)
    check_page(path)
    case = Case.of(model, train, Settings.of(settings))
    scores = ask_influence(case, test, target)
    return write_page(
        scores,
        path,
        test,
        train,
        model=model,
        self_influence=ask_self_influence(case) if suspicious else None,
        verification=verification,
        **vars(options),
    )
