"""Sums over long rows, piece by piece, against NumPy's of float64 over all of them."""

import numpy as np
import pytest
import threadpoolctl

from keras_influence.linalg import sweeps
from keras_influence.linalg.arrays import taking_turns

# More than a few pieces, and one that is not full.
SIZE = 120_001


@pytest.fixture(params=["one after the other", "side by side"], autouse=True)
def halves(request):
    if request.param == "one after the other":
        yield
        return
    with threadpoolctl.threadpool_limits(2, user_api="blas"), taking_turns():
        yield


@pytest.fixture
def rows(rng):
    return rng.normal(size=(3, SIZE)).astype(np.float32)


def _wide(a):
    return a.astype(np.float64)


def test_overlaps_and_norms_are_those_of_float64(rows):
    assert len(list(sweeps.pieces(rows.shape))) > 1
    truth = _wide(rows) @ _wide(rows[:2]).T
    np.testing.assert_allclose(sweeps.overlaps(rows, rows[:2]), truth, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(sweeps.row_norms(rows), np.linalg.norm(_wide(rows), axis=1))


def test_conjugated_rows_are_changed_in_place(rows, rng):
    change, p = rng.normal(size=(3, 2)).astype(np.float32), rows[:2].copy()
    truth = _wide(rows) - _wide(change) @ _wide(p)
    products = sweeps.conjugated(rows, change, p)
    np.testing.assert_allclose(rows, truth, atol=1e-5)
    np.testing.assert_allclose(products, _wide(rows) @ _wide(rows).T, rtol=1e-12, atol=1e-9)


def test_turned_rows_stand_in_the_place_of_the_first(rows, rng):
    turn, lengths = rng.normal(size=(2, 3)).astype(np.float32), np.float32([1, 2, 4])
    truth = _wide(turn) @ (_wide(rows) / lengths[:, None])
    found = sweeps.turned(turn, rows, lengths)
    assert np.shares_memory(found, rows)
    np.testing.assert_allclose(found, truth, atol=1e-5)


@pytest.mark.parametrize("active", [[0, 1, 2], [2, 0]])
def test_a_step_is_taken_by_the_active_rows(active, rows, rng):
    x = rng.normal(size=(3, SIZE))
    r, q, active = rows[active].copy(), rows[:2] * 0.5, np.array(active)
    change = rng.normal(size=(len(active), 2)).astype(np.float32)
    steps = _wide(change) @ _wide(rows[:2])
    truth_x, truth_r = x.copy(), _wide(r) - 0.5 * steps
    truth_x[active] += steps
    norms = sweeps.stepped(x, r, change, rows[:2], q, active)
    np.testing.assert_allclose(x, truth_x, atol=1e-5)
    np.testing.assert_allclose(r, truth_r, atol=1e-5)
    np.testing.assert_allclose(norms, np.linalg.norm(truth_r, axis=1), rtol=1e-5)
