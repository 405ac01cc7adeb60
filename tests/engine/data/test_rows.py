"""Rows of structures of tensors against NumPy's indexing."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from keras_influence.engine.data import rows


@pytest.fixture
def arrays(rng):
    """A structure of arrays with sparse, dense and string parts."""
    return (
        {"s": rng.normal(size=(7, 4)) * (rng.uniform(size=(7, 4)) < 0.4), "d": rng.normal(size=7)},
        np.array([f"row {i}".encode() for i in range(7)], object)[:, None],
    )


def tensors(arrays):
    x, y = arrays
    return ({"s": tf.sparse.from_dense(x["s"]), "d": tf.constant(x["d"])}, tf.constant(y))


def taken(arrays, positions):
    return tf.nest.map_structure(lambda a: a[positions], arrays)


def same(found, expected):
    """Whether all parts are equal, and dense."""
    flat = tf.nest.flatten(rows.dense(found)), tf.nest.flatten(expected)
    return all((a.numpy() == b).all() and a.shape == b.shape for a, b in zip(*flat))


@pytest.mark.parametrize("positions", [[2], [6, 0, 6, 3], [1, 1, 1], range(7), []])
def test_rows_are_taken_in_order_and_may_repeat(positions, arrays):
    positions = np.array(positions, int)
    found = rows.take(tensors(arrays), positions)
    assert rows.size(found) == len(positions)
    assert same(found, taken(arrays, positions))
    assert isinstance(found[0]["s"], tf.SparseTensor)


@pytest.mark.parametrize("size, sizes", [(3, [3, 3, 1]), (7, [7]), (10, [7]), (1, [1] * 7)])
def test_a_split_gives_the_rows_one_after_another(size, sizes, arrays):
    parts = rows.split(tensors(arrays), size)
    stops = np.cumsum(sizes)
    assert [rows.size(part) for part in parts] == sizes
    for part, where in zip(parts, np.split(np.arange(7), stops[:-1])):
        assert same(part, taken(arrays, where))
    assert same(rows.joined(parts), arrays)


def test_sparse_entries_need_no_order_and_add_up_where_they_meet():
    tensor = tf.SparseTensor([[1, 2], [0, 1], [1, 2]], [3.0, 4.0, 5.0], [3, 3])
    expected = scipy.sparse.coo_matrix(([3, 4, 5], ([1, 0, 1], [2, 1, 2])), (3, 3)).toarray()
    assert (rows.dense(tensor).numpy() == expected).all()
    assert (rows.dense(rows.take(tensor, [2, 1, 0])).numpy() == expected[::-1]).all()


@pytest.mark.parametrize("values", [[b"a", b"bc"], [True, True]])
def test_sparse_strings_and_flags(values):
    tensor = tf.SparseTensor([[1, 0], [0, 1]], values, [2, 2])
    empty = type(values[0])()
    expected = [[empty, values[1]], [values[0], empty]]
    assert rows.dense(tensor).numpy().tolist() == expected


def test_the_layout_is_the_shape_of_a_row():
    a, b = tf.zeros((2, 3)), tf.zeros((5, 3))
    assert rows.layout((a, a)) == rows.layout((b, b)) != rows.layout((a, tf.zeros((2, 4))))
