"""Pictures of evaluations show the numbers they are made of, and say what the axes are."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from keras_influence import evaluation
from keras_influence.report.canvas import COLOURS
from tests.report.pictures import is_in, pixels


def texts(figure):
    """Title, axes' labels and legend of a figure with one set of axes."""
    (axis,) = figure.axes
    legend = axis.get_legend()
    entries = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return axis.get_title(), axis.get_xlabel(), axis.get_ylabel(), entries


def test_leave_one_out():
    predicted = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    result = evaluation.LeaveOneOut(
        predicted, 2 * predicted + 1, np.arange(3), "by hand", np.nan, np.full(3, np.nan), "margin"
    )
    figure = result.plot()
    assert texts(figure) == (
        "Pearson 1.0000, slope 2.000",
        "predicted change of margin",
        "actual change",
        ["predicted = actual"],
    )
    (axis,) = figure.axes
    points = axis.collections[0].get_offsets()
    assert sorted(map(tuple, points)) == [(p, 2 * p + 1) for p in range(6)]
    # The line of equality spans everything there is.
    assert axis.lines[0].get_xydata().tolist() == [[0, 0], [11, 11]]
    assert is_in(pixels(figure), COLOURS[2])


def test_removal():
    top = np.array([[1.0, 2.0], [3.0, 6.0]])
    random = np.array([[[0.0, 0.5], [0.0, 0.5]], [[0.2, 1.5], [0.2, 1.5]]])
    curve = evaluation.RemovalCurve(np.array([1, 4]), top, random, top / 2)
    figure = curve.plot()
    assert texts(figure) == (
        "",
        "training examples left out",
        "mean change of test loss",
        ["top proponents", "predicted", "random"],
    )
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert lines["top proponents"] == pytest.approx(np.array([[1, 2], [4, 4]]))
    assert lines["predicted"] == pytest.approx(np.array([[1, 1], [4, 2]]))
    assert lines["random"] == pytest.approx(np.array([[1, 0.1], [4, 1.0]]))
    # The band reaches from the smallest to the largest repeat.
    low, high = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData).intervaly
    assert (low, high) == pytest.approx((0.0, 1.5))
    assert is_in(pixels(figure), COLOURS[0])


def test_mislabelled():
    curve = evaluation.MislabelCurve(
        {"mine": np.array([0, 0.5, 0.5, 1]), "random": np.array([0.25, 0.5, 0.75, 1])},
        {"mine": np.arange(4)},
        np.array([True, False, True, False]),
    )
    figure = curve.plot()
    assert texts(figure) == (
        "",
        "fraction of examples checked",
        "fraction of wrong labels found",
        ["mine", "random", "best possible"],
    )
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert lines["mine"].tolist() == [[0, 0], [0.25, 0], [0.5, 0.5], [0.75, 0.5], [1, 1]]
    # Two of four are wrong: all can be found in the first half.
    assert lines["best possible"].tolist() == [[0, 0], [0.25, 0.5], [0.5, 1], [0.75, 1], [1, 1]]
    assert is_in(pixels(figure), COLOURS[1])


def test_lds():
    score = evaluation.LDS(np.array([0.1, 0.2, 0.2, 0.7]), 0.3, (0.1, 0.5), 0.95, 20)
    figure = score.plot()
    assert texts(figure) == ("LDS 0.300", "Spearman correlation over subsets", "test examples", [])
    (axis,) = figure.axes
    assert sorted(bar.get_height() for bar in axis.patches)[-3:] == [1, 1, 2]
    assert axis.lines[0].get_xdata() == pytest.approx([0.3, 0.3])
    assert is_in(pixels(figure), COLOURS[0])


def test_a_verification_shows_its_retrainings():
    predicted = np.array([[0.0, 1.0]])
    retrained = evaluation.LeaveOneOut(predicted, predicted, np.arange(2), "", 0.0, np.zeros(2))
    numbers = {"hvp_error": 0.0, "gradient": 0.0, "residual": 0.0, "converged": True}
    rest = {"solver": "CG", "approximation": False, "curvature": "hessian", "damping": 0.01}
    rest |= {"missing": "", "verdict": (), "ok": True}
    found = evaluation.Verification(**numbers, **rest, retrained=retrained)
    assert texts(found.plot())[0] == "Pearson 1.0000, slope 1.000"
    without = evaluation.Verification(**numbers, **rest, retrained=None)
    with pytest.raises(ValueError, match="removals=8"):
        without.plot()
