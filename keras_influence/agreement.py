"""How well predictions agree with what happened."""

import numpy as np


def pearson(a, b):
    """Pearson correlation of two arrays of equal size; NaN where one is constant."""
    a, b = (np.ravel(t).astype(np.float64) for t in (a, b))
    a, b = a - a.mean(), b - b.mean()
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 0 else float("nan")


def spearman(a, b):
    """Pearson correlation of the ranks; ties share their mean rank."""
    return pearson(ranks(np.ravel(a)), ranks(np.ravel(b)))


def ranks(values):
    """Ranks along the last axis, ties sharing their mean rank."""
    import scipy.stats  # Slow to import, and only needed here.

    return scipy.stats.rankdata(values, axis=-1)


def slope(predicted, actual):
    """Slope of the least-squares line, with intercept, of `actual` on `predicted`."""
    x, y = (np.ravel(t).astype(np.float64) for t in (predicted, actual))
    x = x - x.mean()
    square = x @ x
    return float(x @ (y - y.mean()) / square) if square > 0 else float("nan")


def sizes_agree(correlation, steepness):
    """Whether predictions can be trusted in size, by their `pearson` and `slope`."""
    return correlation > 0.95 and 0.8 < steepness < 1.25


def orders_agree(correlation):
    """Whether their order can be trusted, by their `pearson`."""
    return correlation > 0.8
