"""Sums of squares of rows that come piece by piece, against the rows written out."""

import numpy as np
import pytest
import scipy.sparse

from keras_influence.linalg.factors import assembly as room
from keras_influence.linalg.factors.assembly import Assembly
from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.written import Formed, Sparse
from tests import truth

SIZE = 47


def _pieces(rng, examples, columns):
    """Parts of four layers and what they are, written out: (columns, examples, SIZE)."""
    order = np.random.default_rng(1).permutation(SIZE - 2)  # Two positions are in no part.
    first, second = order[:15].reshape(5, 3), order[15:27].reshape(3, 4)
    third, fourth = order[27:35], order[35:]
    inputs = [rng.normal(size=(examples, 5)), rng.normal(size=(examples, 3))]
    whole, found = np.zeros((columns, examples, SIZE)), []
    for c in range(columns):
        deltas = [rng.normal(size=(examples, 3)), rng.normal(size=(examples, 4))]
        formed = rng.normal(size=(examples, 8))
        sparse = scipy.sparse.random(examples, 10, 0.3, "csr", random_state=c)
        for a, d, where in zip(inputs, deltas, (first, second)):
            whole[c][:, where.ravel()] = np.einsum("mk,mo->mko", a, d).reshape(examples, -1)
        whole[c][:, third], whole[c][:, fourth] = formed, sparse.toarray()
        # What is written out stands before what is a product, too.
        found.append(
            [
                Formed(Positions.of(third), formed),
                Outer(Positions.of(first), inputs[0], deltas[0]),
                Sparse(Positions.of(fourth), sparse.data, sparse.indices, sparse.indptr),
                Outer(Positions.of(second), inputs[1], deltas[1]),
            ]
        )
    return found, whole


@pytest.mark.parametrize("columns", [(1, 1), (3, 3), (1, 2), (2, 1)])
def test_the_sum_of_squares_of_all_rows(columns, rng, monkeypatch):
    monkeypatch.setattr(room, "_NUMBERS", 40)
    assembly, expected = Assembly(), np.zeros((SIZE, SIZE))
    for examples, count in zip((6, 4), columns):
        pieces, whole = _pieces(rng, examples, count)
        assembly.add(pieces)
        expected += np.einsum("cbi,cbj->ij", whole, whole)
    matrix = assembly.written_out(SIZE)
    assert truth.relative_error(matrix, expected) < 1e-13
    assert (matrix == matrix.T).all()


def test_rows_in_float32_are_added_up_in_float64(rng):
    """A thousand times the same: a sum in float32 would lose what one adds."""
    pieces, whole = _pieces(rng, 3, 2)
    pieces = [[part.astype("float32") for part in parts] for parts in pieces]
    assembly, expected = Assembly(), 1000 * np.einsum("cbi,cbj->ij", whole, whole)
    for _ in range(1000):
        assembly.add(pieces)
    assert truth.relative_error(assembly.written_out(SIZE), expected) < 1e-6
    assert not Assembly().written_out(3).any()


def test_rows_in_other_parts_are_not_added(rng):
    """As where a layer has turned out not to know its examples."""
    pieces, whole = _pieces(rng, 5, 2)
    assembly = Assembly()
    assert assembly.add(pieces) and assembly.add([])
    assert not assembly.add([parts[:-1] for parts in pieces])
    expected = np.einsum("cbi,cbj->ij", whole, whole)
    assert truth.relative_error(assembly.written_out(SIZE), expected) < 1e-13
