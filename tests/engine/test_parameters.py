"""θ as a flat vector, and a user's vectors as rows."""

import keras
import numpy as np
import pytest

from keras_influence.engine.parameters import Parameters


@pytest.fixture
def parameters():
    """Of shapes (2, 3) and (3,): nine numbers."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    return Parameters(model.trainable_variables)


def test_one_vector_is_one_row(parameters):
    v = np.arange(9.0)
    rows, restore = parameters.as_rows(v)
    assert rows.shape == (1, 9)
    assert (rows[0] == v).all()
    assert (restore(2 * rows) == 2 * v).all()


def test_a_users_columns_become_rows_and_come_back(parameters, rng):
    v = rng.normal(size=(9, 4))
    rows, restore = parameters.as_rows(v)
    assert (rows == v.T).all()
    assert (restore(2 * rows) == 2 * v).all()


def test_a_list_is_one_row_and_comes_back_in_its_shapes(parameters, rng):
    v = [rng.normal(size=(2, 3)), rng.normal(size=3)]
    rows, restore = parameters.as_rows(v)
    assert (rows == np.r_[v[0].ravel(), v[1]][None]).all()
    assert all((a == 2 * b).all() for a, b in zip(restore(2 * rows), v, strict=True))


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (np.ones(8), r"`w` should be a vector of shape \(9,\).*Received: w with shape \(8,\)"),
        (np.ones((4, 9)), r"`w` .*\(9, k\).*\(4, 9\)"),
        ([np.ones((2, 3))], "`w`.*2 arrays.*Received: 1"),
        ([np.ones((3, 2)), np.ones(3)], r"`w\[0\]` should have shape \(2, 3\)"),
        (np.full(9, np.nan), "`w` should be finite"),
    ],
)
def test_what_does_not_fit_is_named(parameters, v, message):
    with pytest.raises(ValueError, match=message):
        parameters.as_rows(v, "w")


def test_what_is_no_array_is_named(parameters):
    with pytest.raises(TypeError, match="`w` should be a numeric array"):
        parameters.as_rows("nine", "w")
