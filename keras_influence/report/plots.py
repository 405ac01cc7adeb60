"""Pictures of what the functions of `keras_influence.evaluation` found. Need matplotlib.

Each takes such a result and returns a `matplotlib.figure.Figure`.
"""

import numpy as np

from keras_influence.report.canvas import COLOURS, new_axes


def leave_one_out(result):
    """A scatter of actual against predicted changes, with the line where they are equal."""
    figure, axis = new_axes()
    ends = [
        min(result.predicted.min(), result.actual.min()),
        max(result.predicted.max(), result.actual.max()),
    ]
    axis.plot(ends, ends, color=COLOURS[2], linewidth=0.8, label="predicted = actual")
    axis.scatter(result.predicted, result.actual, s=9, color=COLOURS[0], alpha=0.6, linewidths=0)
    axis.set_xlabel(f"predicted change of {result.target}")
    axis.set_ylabel("actual change")
    axis.ticklabel_format(style="sci", scilimits=(-2, 3))
    axis.locator_params(nbins=6)
    axis.set_title(f"Pearson {result.pearson:.4f}, slope {result.slope:.3f}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return figure


def removal(curve):
    """Mean change over test examples against k, with the range of the random removals."""
    figure, axis = new_axes()
    random = curve.random.mean(1)
    axis.plot(curve.counts, curve.top.mean(0), "o-", color=COLOURS[0], label="top proponents")
    axis.plot(curve.counts, curve.predicted.mean(0), "--", color=COLOURS[0], label="predicted")
    axis.plot(curve.counts, random.mean(0), "o-", color=COLOURS[2], label="random")
    low, high = random.min(0), random.max(0)
    axis.fill_between(curve.counts, low, high, color=COLOURS[2], alpha=0.3, linewidth=0)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xlabel("training examples left out")
    axis.set_ylabel(f"mean change of {curve.target}")
    axis.legend(frameon=False, fontsize=8)
    return figure


def mislabelled(curve):
    """Fraction of wrong labels found against fraction of examples checked."""
    figure, axis = new_axes()
    checked = np.arange(len(curve.wrong) + 1) / len(curve.wrong)
    for i, (name, found) in enumerate(curve.found.items()):
        axis.plot(checked, [0, *found], label=name, color=COLOURS[i % len(COLOURS)])
    best = np.minimum(checked / curve.wrong.mean(), 1)
    axis.plot(checked, best, color="black", linewidth=0.8, linestyle=":", label="best possible")
    axis.set_xlabel("fraction of examples checked")
    axis.set_ylabel("fraction of wrong labels found")
    axis.legend(frameon=False, fontsize=8)
    return figure


def lds(score):
    """A histogram of the test examples' correlations."""
    figure, axis = new_axes()
    axis.hist(score.correlations, bins=30, color=COLOURS[0])
    axis.axvline(score.mean, color="black", linewidth=1)
    axis.set_xlabel("Spearman correlation over subsets")
    axis.set_ylabel("test examples")
    axis.set_title(f"LDS {score.mean:.3f}", fontsize=10)
    return figure
