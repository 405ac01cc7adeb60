"""Positions in θ, as a run of numbers or one by one."""

import numpy as np
import pytest

from keras_influence.linalg.factors.positions import Positions

KINDS = {
    "a run": np.arange(4, 16).reshape(3, 4),
    "one": np.array([[7]]),
    "none": np.zeros((0, 1), int),
    "a run backwards": np.arange(15, 3, -1).reshape(3, 4),
    "any": np.random.default_rng(0).permutation(20)[:12].reshape(3, 4),
    "one is left out": np.array([3, 4, 6]),
    "a run in disorder": np.array([3, 5, 4, 6]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_take_and_where_that_goes(kind, rng):
    array = KINDS[kind]
    found, v = Positions.of(array), rng.normal(size=(2, 20))
    assert (found.array == array).all() and found.size == array.size
    assert (found.taken(v) == v[:, array]).all() and found.taken(v).shape == (2, *array.shape)
    assert (found.taken(v[0]) == v[0][array]).all()
    assert found.flat.shape == (array.size,) and (found.flat.array == array.ravel()).all()
    back = np.zeros((2, 20))
    back[:, found.where] = v[:, array.ravel()]
    expected = np.where(np.isin(np.arange(20), array), v, 0)
    assert (back == expected).all()


def test_a_run_takes_no_memory():
    assert Positions.of(KINDS["a run"]).others.size == 0
    assert Positions.of(KINDS["any"]).others.nbytes == 4 * 12
