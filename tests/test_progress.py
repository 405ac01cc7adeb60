"""Progress bars: shown when asked, silent otherwise, and never in the way."""

import time

import keras
import pytest

from keras_influence.progress import Progress


def test_a_bar_counts_to_its_end(capsys):
    seen = list(Progress(1).over("abc", "Three letters", 3))
    shown = capsys.readouterr().out
    assert seen == list("abc")
    assert shown.startswith("Three letters")
    assert "3/3" in shown


def test_values_are_shown_as_they_are_not_as_means(capsys):
    step = Progress(1).stage("Solve", 2)
    step(1, residual=1.0)
    step(2, residual=0.25)
    step.close()
    assert "residual: 0.2500" in capsys.readouterr().out


def test_values_may_come_later(capsys):
    step = Progress(1).stage("Blocks", 3)
    step(0)
    step(0, residual=1.0)
    step(1, residual=0.5)
    step(2)
    step(3)
    shown = capsys.readouterr().out
    assert "residual: 0.5000" in shown
    assert "residual: 0.7500" not in shown
    assert "3/3" in shown


def test_what_is_not_known_is_not_shown(capsys):
    step = Progress(1).stage("Solve", 2)
    step(1, residual=float("nan"))
    assert "residual" not in capsys.readouterr().out
    step(2, residual=0.25)
    assert "residual: 0.2500" in capsys.readouterr().out


def test_a_stage_of_unknown_length_ends_its_line(capsys):
    step = Progress(1).stage("Iterate")
    step(1)
    step(7)
    step.close()
    shown = capsys.readouterr().out
    assert "7/Unknown" in shown
    assert shown.endswith("\n")


def test_a_stage_that_ends_early_ends_its_line(capsys):
    step = Progress(1).stage("Solve", 100)
    step(3)
    step.close()
    shown = capsys.readouterr().out
    assert "3/100" in shown
    assert shown.endswith("\n")


def test_silence_is_silent(capsys):
    assert list(Progress(0).over(range(3), "Work", 3)) == [0, 1, 2]
    step = Progress(0).stage("Work")
    step(1, residual=1.0)
    step.close()
    assert capsys.readouterr().out == ""


def test_auto_waits_a_second(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    keras.config.enable_interactive_logging()
    progress = Progress("auto")
    list(progress.over(range(3), "Short", 3))
    assert capsys.readouterr().out == ""
    step = progress.stage("Long", 3)
    step(1)
    clock[0] += 1.5
    step(2)
    assert capsys.readouterr().out.startswith("Long")


def test_auto_follows_keras(capsys, monkeypatch):
    monkeypatch.setattr("keras_influence.progress._PATIENCE", 0.0)
    try:
        keras.config.disable_interactive_logging()
        list(Progress("auto").over(range(3), "Quiet", 3))
        assert capsys.readouterr().out == ""
        list(Progress(1).over(range(3), "Asked for", 3))
        assert capsys.readouterr().out.startswith("Asked for")
    finally:
        keras.config.enable_interactive_logging()
    list(Progress("auto").over(range(3), "Shown", 3))
    assert capsys.readouterr().out.startswith("Shown")


@pytest.mark.parametrize("verbose", ["yes", -1, 3, None])
def test_bad_verbose_is_refused(verbose):
    with pytest.raises(ValueError, match="`verbose` should be 'auto', 0, 1 or 2. Received"):
        Progress(verbose)
