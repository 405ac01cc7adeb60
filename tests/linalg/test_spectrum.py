"""Eigenpairs and traces against matrices with a known spectrum."""

import numpy as np
import pytest

from keras_influence.linalg.operators import Dense
from keras_influence.linalg.spectrum import eigenpairs, trace_samples
from tests.linalg.matrices import spectral

VALUES = np.r_[-6.0, -1.0, np.linspace(0.1, 1, 26), 3.0, 5.0]


@pytest.mark.parametrize(
    ("which", "expected"), [("LA", [3, 5]), ("SA", [-6, -1]), ("LM", [-6, 5]), ("BE", [-6, 5])]
)
def test_eigenpairs_are_rows(which, expected):
    matrix, _ = spectral(VALUES)
    steps = []
    values, vectors = eigenpairs(Dense(matrix), 2, which, tol=1e-10, on_step=steps.append)
    assert values == pytest.approx(expected, abs=1e-8)
    assert vectors.shape == (2, 30)
    assert vectors @ matrix == pytest.approx(values[:, None] * vectors, abs=1e-6)
    assert steps == list(range(1, len(steps) + 1))


def test_all_eigenpairs_are_found_densely():
    matrix, _ = spectral(VALUES)
    values, vectors = eigenpairs(Dense(matrix), 40, "LM", tol=1e-3)
    assert values == pytest.approx(np.sort(VALUES))
    assert (vectors.T * values) @ vectors == pytest.approx(matrix)


def test_the_same_seed_gives_the_same_bits():
    matrix, _ = spectral(VALUES)
    first, second = (eigenpairs(Dense(matrix), 3, "LM", 1e-3, seed=5) for _ in range(2))
    assert (first[1] == second[1]).all()


def test_trace_samples_are_exact_for_a_diagonal_matrix():
    values = trace_samples(Dense(np.diag(VALUES)), 7, seed=0)
    assert values == pytest.approx(np.full(7, VALUES.sum()))


def test_trace_samples_are_right_on_average():
    matrix, _ = spectral(VALUES)
    values = trace_samples(Dense(matrix), 4000, seed=1)
    # Hutchinson's variance: 2 (‖A‖² - Σ aᵢᵢ²).
    error = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / 4000)
    assert values.mean() == pytest.approx(VALUES.sum(), abs=4 * error)
    assert values.std() == pytest.approx(error * np.sqrt(4000), rel=0.1)
