"""Correlations and slopes by hand."""

import numpy as np
import pytest

from keras_influence import agreement


def test_agreement_by_hand():
    a, b = [1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 · (0 + 1 + 1 + 0) / (4 · 15).
    assert agreement.spearman(a, b) == pytest.approx(0.8)
    # Ties share ranks: 1.5 1.5 3 and 1 2 3, so 1.5 / sqrt(1.5 · 2).
    assert agreement.spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3))
    # Centred: -1.5 -.5 .5 1.5 and -15 5 -5 15: 40 / sqrt(5 · 500).
    assert agreement.pearson(a, b) == pytest.approx(0.8)
    assert agreement.slope(a, b) == pytest.approx(8.0)
    assert agreement.slope(a, -np.array(b)) == pytest.approx(-8.0)
    assert np.isnan(agreement.pearson([1, 1], [1, 2]))
    assert np.isnan(agreement.slope([1, 1], [1, 2]))


def test_what_agrees_in_size_agrees_in_order():
    assert agreement.sizes_agree(0.96, 0.9) and agreement.orders_agree(0.96)
    for correlation, steepness in [(0.94, 1.0), (0.96, 0.7), (0.96, 1.3), (np.nan, np.nan)]:
        assert not agreement.sizes_agree(correlation, steepness)
    assert agreement.orders_agree(0.81) and not agreement.orders_agree(0.79)
