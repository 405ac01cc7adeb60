"""The seam to matplotlib."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from keras_influence.report import canvas
from tests.report.pictures import is_in, pixels


def test_a_picture_has_the_size_that_was_asked_for():
    assert pixels(canvas.new_figure(2, 1)).shape == (130, 260, 3)
    png = canvas.png(canvas.new_figure(2, 1), dpi=50)
    assert png.startswith(b"\x89PNG")


def test_what_is_drawn_is_seen():
    figure, axis = canvas.new_axes()
    assert not is_in(pixels(figure), canvas.COLOURS[1])
    axis.plot([0, 1], [0, 1], color=canvas.COLOURS[1], linewidth=3)
    assert is_in(pixels(figure), canvas.COLOURS[1])


def test_nothing_global_of_matplotlib_is_touched():
    """A figure of pyplot's would stay in memory, and show up in the user's next cell."""
    before = set(sys.modules)
    canvas.png(canvas.new_axes()[0])
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_a_notebook_shows_a_figure_without_pyplot():
    """IPython asks an object for `_repr_png_`; it has a printer of its own for pyplot's alone."""
    assert canvas.new_axes()[0]._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [canvas.new_axes, lambda: canvas.new_figure(1, 1)])
def test_without_matplotlib_the_way_out_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install matplotlib"):
        make()


def test_scores_and_results_say_what_their_pictures_need(monkeypatch):
    import keras_influence as ki

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lds = ki.evaluation.LDS(np.zeros(2), 0.0, (0.0, 0.0), 0.95, 3)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        lds.plot()
