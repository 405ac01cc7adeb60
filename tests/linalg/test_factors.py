"""Factors against dense inverses, and as plain arrays and back."""

import json

import numpy as np
import pytest
import scipy.linalg
import threadpoolctl

from keras_influence.linalg.arrays import taking_turns
from keras_influence.linalg.factors import packing
from keras_influence.linalg.factors.blocks import Block, Channels
from keras_influence.linalg.factors.contributions import ContributionsFactor
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.factors.outer import Outer
from keras_influence.linalg.factors.positions import Positions
from keras_influence.linalg.factors.rows import stacked
from keras_influence.linalg.factors.two_level import CoupledFactor, TwoLevelFactor
from keras_influence.linalg.factors.written import Formed, Sparse
from tests import truth
from tests.linalg.matrices import Layers, dense_solve, spectral


def _low_rank(eigenvalues, damping):
    q = spectral(np.ones(12))[1].T[: len(eigenvalues)]
    return LowRank(q, np.array(eigenvalues), damping), (q.T * eigenvalues) @ q


def test_low_rank_inverts_with_its_damping(rng):
    factor, matrix = _low_rank([5.0, 2.0, 0.5], 0.1)
    rows = rng.normal(size=(4, 12))
    assert truth.relative_error(factor.solve(rows), dense_solve(matrix, rows, 0.1)) < 1e-12


def test_low_rank_without_damping_goes_on_with_its_smallest_eigenvalue(rng):
    factor, matrix = _low_rank([5.0, 2.0, 0.5], 0.0)
    rows = rng.normal(size=(4, 12))
    outside = np.eye(12) - factor.vectors.T @ factor.vectors
    expected = dense_solve(matrix + 0.5 * outside, rows)
    assert truth.relative_error(factor.solve(rows), expected) < 1e-12


def test_low_rank_projects(rng):
    factor, matrix = _low_rank([5.0, -2.0], 0.1)
    inside = factor.vectors.T @ factor.vectors
    expected = rng.normal(size=(3, 12)) @ inside
    rows = expected @ (matrix + 0.1 * np.eye(12)) + rng.normal(size=(3, 12)) @ (np.eye(12) - inside)
    assert truth.relative_error(factor.project(rows), expected) < 1e-12


def test_low_rank_preconditions_with_its_smallest_eigenvalue_outside(rng):
    factor, matrix = _low_rank([5.0, 2.0, 0.5], 0.1)
    rows = rng.normal(size=(4, 12))
    outside = np.eye(12) - factor.vectors.T @ factor.vectors
    expected = dense_solve(matrix + 0.5 * outside, rows, 0.1)
    assert truth.relative_error(factor.precondition(rows), expected) < 1e-12


@pytest.mark.parametrize(
    ("eigenvalues", "kind"), [(np.linspace(1, 3, 9), "cholesky"), (np.linspace(-2, 3, 9), "ldl")]
)
def test_dense_factor_inverts(eigenvalues, kind, rng):
    matrix, _ = spectral(eigenvalues)
    factor = DenseFactor.of(matrix.copy())
    rows = rng.normal(size=(4, 9))
    assert factor.kind == kind
    assert truth.relative_error(factor.solve(rows), dense_solve(matrix, rows)) < 1e-11


def test_rounding_is_made_up_for_after_all_of_a_matrix_was_tried(rng):
    """A negative eigenvalue, no more than rounding, that Cholesky meets at the last of its columns."""
    matrix, _ = spectral(np.r_[-1e-9, np.linspace(1, 3, 299)])
    factor, rows = DenseFactor.of(matrix.copy(), 1e-6), rng.normal(size=(2, 300))
    added = 1e-6 * np.abs(matrix).sum(1).max()
    assert factor.kind == "cholesky"
    expected = dense_solve(matrix, rows, added)
    assert truth.relative_error(factor.solve(rows), expected) < 1e-6


def test_a_block_inverts_its_part(rng):
    layers = Layers(rng)
    rows = rng.normal(size=(4, 23))
    found = Kronecker(layers.blocks, 0.3).precondition(rows)
    for block in layers.layers:
        part = block.positions.array.ravel()
        expected = dense_solve(layers.matrix[np.ix_(part, part)], rows[:, part], 0.3)
        assert truth.relative_error(found[:, part], expected) < 1e-12


def _kronecker(layers, damping):
    rest = layers.rest
    values, vectors = np.linalg.eigh(layers.matrix[np.ix_(rest, rest)])
    return Kronecker(
        (*layers.layers, Channels("", Positions.of(rest[None]), vectors[None], values[None])),
        damping,
    )


def test_kronecker_inverts_a_block_diagonal_matrix(rng):
    layers = Layers(rng)
    rows = rng.normal(size=(4, 23))
    found = _kronecker(layers, 0.3).precondition(rows)
    assert truth.relative_error(found, dense_solve(layers.matrix, rows, 0.3)) < 1e-12


def test_a_block_of_few_directions_is_a_multiple_of_the_identity_in_all_others(rng):
    inputs, outputs = (np.linalg.qr(rng.normal(size=shape))[0] for shape in ((6, 2), (4, 3)))
    positions = rng.permutation(24).reshape(6, 4)
    block = Block("", Positions.of(positions), inputs, outputs, rng.uniform(1, 2, (2, 3)), rest=0.5)
    basis = np.zeros((24, 6))
    basis[positions.ravel()] = np.kron(inputs, outputs)
    others = np.eye(24) - basis @ basis.T
    matrix = (basis * block.eigenvalues.ravel()) @ basis.T + 0.5 * others
    fine, rows = Kronecker((block,), 0.3), rng.normal(size=(4, 24))
    expected = dense_solve(matrix, rows, 0.3)
    assert truth.relative_error(fine.precondition(rows), expected) < 1e-12
    root = scipy.linalg.sqrtm(matrix)
    assert truth.relative_error(fine.function(rows, np.sqrt), rows @ root) < 1e-12
    assert fine.without(np.array([0])) == pytest.approx(
        (block.eigenvalues.ravel()[1:].max(), (np.trace(matrix) - block.eigenvalues[0, 0]) / 23)
    )
    coarse, core = np.array([0, 2, 5]), spectral(np.linspace(1, 4, 3))[0]
    chosen = basis[:, coarse]
    coupled = matrix + chosen @ (core - np.diag(block.eigenvalues.ravel()[coarse])) @ chosen.T
    factor = TwoLevelFactor(fine, coarse, np.linalg.cholesky(core + 0.3 * np.eye(3)))
    expected = dense_solve(coupled, rows, 0.3)
    assert truth.relative_error(factor.precondition(rows), expected) < 1e-12


def test_a_diagonal_is_added_with_its_whole_trace(rng):
    inputs, outputs = (np.linalg.qr(rng.normal(size=shape))[0] for shape in ((6, 2), (4, 3)))
    positions, d = rng.permutation(24).reshape(6, 4), rng.uniform(1, 2, 24)
    block = Block("", Positions.of(positions), inputs, outputs, rng.uniform(1, 2, (2, 3)), rest=0.5)
    found = block.with_diagonal(d)
    basis = np.kron(inputs, outputs)
    more = np.diag(basis.T @ np.diag(d[positions.ravel()]) @ basis).reshape(2, 3)
    assert found.eigenvalues == pytest.approx(block.eigenvalues + more)
    assert found.rest == pytest.approx(0.5 + (d.sum() - more.sum()) / 18)


def test_channels_invert_small_blocks_side_by_side(rng):
    matrices = [spectral([1.0, 2.0], seed)[0] for seed in range(3)]
    values, vectors = np.linalg.eigh(np.stack(matrices))
    positions = rng.permutation(6).reshape(3, 2)
    matrix = np.zeros((6, 6))
    for part, small in zip(positions, matrices):
        matrix[np.ix_(part, part)] = small
    factor = Kronecker((Channels("", Positions.of(positions), vectors, values),), 0.3)
    rows = rng.normal(size=(4, 6))
    assert truth.relative_error(factor.precondition(rows), dense_solve(matrix, rows, 0.3)) < 1e-12
    turned = factor.turned(rows)
    assert factor.turned_back(turned, turned.shape[1]) == pytest.approx(rows)
    assert (turned**2 * factor.eigenvalues).sum(1) == pytest.approx(
        np.einsum("ki,ij,kj->k", rows, matrix, rows)
    )


def test_two_levels_invert_a_matrix_that_is_dense_in_some_coordinates(rng):
    layers = Layers(rng, coupling=0.1)
    fine = Kronecker(layers.blocks, 0.3)
    basis = fine.turned(np.eye(23)).T
    coarse = np.sort(rng.choice(23, 8, replace=False))
    matrix = np.diag(fine.eigenvalues)
    matrix[np.ix_(coarse, coarse)] = (basis @ layers.matrix @ basis.T)[np.ix_(coarse, coarse)]
    damped = matrix[np.ix_(coarse, coarse)] + 0.3 * np.eye(8)
    factor = TwoLevelFactor(fine, coarse, np.linalg.cholesky(damped))
    rows = rng.normal(size=(4, 23))
    expected = dense_solve(basis.T @ matrix @ basis, rows, 0.3)
    assert truth.relative_error(factor.precondition(rows), expected) < 1e-12
    found = factor.astype("float32").precondition(rows.astype("float32"))
    assert found.dtype == np.float32
    assert truth.relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("places", [[0, 5, 7, 12, 14, 20], [1, 2], [13]])
def test_coupled_is_a_multiple_of_the_identity_outside(rng, places):
    """Coordinates of all blocks, or of some alone, whose bases are then all that is kept."""
    layers, coarse = Layers(rng), np.array(places)
    blocks = Kronecker(layers.blocks, 0.3)
    basis = blocks.turned(np.eye(23)).T[coarse]
    core = spectral(np.linspace(1, 4, len(coarse)))[0]
    bases, where = blocks.narrowed(coarse)
    factor = CoupledFactor(bases, where, np.linalg.cholesky(core + 0.3 * np.eye(len(core))), 0.4)
    rows = rng.normal(size=(4, 23))
    matrix = 0.4 * np.eye(23) + basis.T @ (core - 0.1 * np.eye(len(core))) @ basis
    assert truth.relative_error(factor.precondition(rows), dense_solve(matrix, rows)) < 1e-12
    found = factor.astype("float32").precondition(rows.astype("float32"))
    assert found.dtype == np.float32
    assert truth.relative_error(found, dense_solve(matrix, rows)) < 1e-5


NOTHING = np.zeros(23)


def _contributions(rng):
    """Seven rows over 23 positions, as parts of all kinds and as one array."""
    order = rng.permutation(23)
    outer = Outer(
        Positions.of(order[:12].reshape(3, 4)), rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    )
    formed = Formed(Positions.of(order[12:15]), rng.normal(size=(7, 3)))
    # The second row has an entry twice, which counts twice.
    ends = np.array([0, 2, 5, 5, 6, 7, 8, 9])
    columns = np.array([0, 3, 1, 1, 2, 4, 0, 3, 2])
    sparse = Sparse(Positions.of(order[15:20]), rng.normal(size=9), columns, ends)
    dense = np.zeros((7, 23))
    dense[:, order[:12]] = np.einsum("mk,mo->mko", outer.inputs, outer.deltas).reshape(7, 12)
    dense[:, order[12:15]] = formed.rows
    np.add.at(dense, (np.repeat(np.arange(7), np.diff(ends)), order[15 + columns]), sparse.data)
    return (outer, formed, sparse), dense


def test_contributions_are_inverted_by_woodburys_identity(rng, monkeypatch):
    for kind in ("outer", "written"):
        monkeypatch.setattr(f"keras_influence.linalg.factors.{kind}._NUMBERS", 60)
    parts, dense = _contributions(rng)
    factor, v = ContributionsFactor.of(parts, 0.3, NOTHING), rng.normal(size=(5, 23))
    expected = dense_solve(dense.T @ dense, v, 0.3)
    assert truth.relative_error(factor.precondition(v), expected) < 1e-12
    single = factor.astype("float32").precondition(v.astype("float32"))
    assert single.dtype == np.float32
    assert truth.relative_error(single, expected) < 1e-4


def test_contributions_are_written_out(rng):
    parts, dense = _contributions(rng)
    for part in parts:
        assert truth.relative_error(part.toarray(), dense[:, part.positions.array.ravel()]) < 1e-12


def test_rows_that_have_their_inputs_in_common_hold_them_once(rng):
    (outer, formed, sparse), _ = _contributions(rng)
    again = Outer(outer.positions, outer.inputs.copy(), rng.normal(size=(7, 4)))
    assert again.beside(outer).inputs is outer.inputs
    assert again.beside(outer).deltas is again.deltas
    assert formed.beside(formed.times(2.0)) is formed and sparse.beside(sparse) is sparse


def test_rows_are_parted(rng):
    parts, dense = _contributions(rng)
    for part in parts:
        twice, rows = part.above([part.times(2.0)]), dense[:, part.positions.array.ravel()]
        first, second = twice.parted(2)
        assert len(first) == len(second) == 7
        assert truth.relative_error(first.toarray(), rows) < 1e-12
        assert truth.relative_error(second.toarray(), 2 * rows) < 1e-12


@pytest.mark.parametrize("slower", [0, 1e9], ids=["sparse", "dense"])
@pytest.mark.parametrize("numbers", [2**24, 14])
def test_inner_products_of_sparse_rows(slower, numbers, rng, monkeypatch):
    """Both ways, whole and two columns at a time; an entry that is there twice counts twice."""
    monkeypatch.setattr("keras_influence.linalg.factors.written._SLOWER", slower)
    monkeypatch.setattr("keras_influence.linalg.factors.written._NUMBERS", numbers)
    (_, _, sparse), dense = _contributions(rng)
    own = dense[:, sparse.positions.array]
    assert truth.relative_error(sparse.gram(), own @ own.T) < 1e-12


@pytest.mark.parametrize("regularised", [False, True])
def test_refined_where_rounding_matters(regularised, rng):
    """Directions ten thousand times above λ, in float32."""
    parts, dense = _contributions(rng)
    diagonal = np.zeros(23)
    if regularised:
        diagonal = rng.uniform(0, 1e-3, 23)
        diagonal[parts[0].positions.array] = rng.uniform(0, 1e-3, (3, 1))
    factor = ContributionsFactor.of(parts, 1e-3, diagonal).astype("float32")
    v = rng.normal(size=(5, 23)).astype("float32")
    matrix = dense.T @ dense + np.diag(diagonal + 1e-3)

    def residual(x):
        return np.linalg.norm(v - x @ matrix) / np.linalg.norm(v)

    assert factor.refined(v).dtype == np.float32
    assert residual(factor.refined(v)) < residual(factor.precondition(v)) / 3
    double = ContributionsFactor.of(parts, 1e-3, diagonal).refined(v.astype("float64"))
    assert residual(double) < 1e-10


def test_contributions_beside_a_regulariser(rng):
    """Of the kernel's part alike for all outputs of an input, as Keras's are; of others not."""
    parts, dense = _contributions(rng)
    diagonal = rng.uniform(0, 2, 23)
    diagonal[parts[0].positions.array] = rng.uniform(0, 2, (3, 1))
    factor, v = ContributionsFactor.of(parts, 0.3, diagonal), rng.normal(size=(5, 23))
    expected = dense_solve(dense.T @ dense + np.diag(diagonal), v, 0.3)
    assert truth.relative_error(factor.precondition(v), expected) < 1e-12
    assert factor.astype("float32").precondition(v.astype("float32")).dtype == np.float32


@pytest.mark.parametrize("regularised", [False, True])
def test_a_damping_that_rounding_would_lose_is_raised(regularised, rng, monkeypatch):
    """Then all of what is there beside the contributions is, the regulariser too."""
    monkeypatch.setattr("keras_influence.linalg.factors.contributions._LOST", 1e15)
    parts, dense = _contributions(rng)
    diagonal = np.zeros(23)
    if regularised:
        diagonal = rng.uniform(0, 2, 23)
        diagonal[parts[0].positions.array] = rng.uniform(0, 2, (3, 1))
    factor, v = ContributionsFactor.of(parts, 0.3, diagonal), rng.normal(size=(5, 23))
    raised = factor.damping / (1 if regularised else 0.3)
    assert raised > 2
    expected = dense_solve(dense.T @ dense + raised * np.diag(diagonal), v, raised * 0.3)
    assert truth.relative_error(factor.precondition(v), expected) < 1e-12
    assert truth.relative_error(factor.refined(v), expected) < 1e-12


def test_contributions_stand_below_others(rng):
    parts, dense = _contributions(rng)
    found = tuple(stacked([part, part.times(2.0)]) for part in parts)
    v, both = rng.normal(size=(2, 23)), np.vstack([dense, 2 * dense])
    expected = dense_solve(both.T @ both, v, 0.3)
    assert (
        truth.relative_error(ContributionsFactor.of(found, 0.3, NOTHING).precondition(v), expected)
        < 1e-12
    )
    assert [len(part) for part in found] == [14, 14, 14]


@pytest.mark.parametrize("name", ["kronecker", "two level", "coupled", "contributions", "alone"])
def test_what_is_preconditioned_stays_as_it_is(name, rng):
    """Also by blocks of one weight each that stand in one piece, and are their own coordinates."""
    ones = Channels("", Positions.of(np.arange(23)[:, None]), np.ones((23, 1, 1)), np.ones((23, 1)))
    alone = Kronecker((ones,), 0.3)
    factor = alone if name == "alone" else _factors(rng)[name]
    rows = rng.normal(size=(3, 23))
    before = rows.copy()
    factor.precondition(rows)
    assert (rows == before).all()


def test_factors_work_in_another_precision(rng):
    layers, rows = Layers(rng), rng.normal(size=(2, 23)).astype("float32")
    found = _kronecker(layers, 0.3).astype("float32").precondition(rows)
    assert found.dtype == np.float32
    assert truth.relative_error(found, dense_solve(layers.matrix, rows, 0.3)) < 1e-5
    factor, matrix = _low_rank([5.0, 2.0], 0.1)
    found = factor.astype("float32").precondition(rows[:, :12])
    assert found.dtype == np.float32
    assert truth.relative_error(found, factor.precondition(rows[:, :12])) < 1e-5


# ---- packing


def _factors(rng):
    return {
        "low rank": _low_rank([5.0, 2.0, 0.5], 0.1)[0],
        "cholesky": DenseFactor.of(spectral(np.linspace(1, 3, 12))[0]),
        "ldl": DenseFactor.of(spectral(np.linspace(-2, 3, 12))[0]),
        "kronecker": _kronecker(Layers(rng), 0.3),
        "two level": TwoLevelFactor(_kronecker(Layers(rng), 0.3), np.arange(3), np.eye(3)),
        "coupled": CoupledFactor(_kronecker(Layers(rng), 0.3), np.arange(3), np.eye(3), 0.4),
        "contributions": ContributionsFactor.of(_contributions(rng)[0], 0.3, NOTHING),
        "nothing": None,
    }


@pytest.mark.parametrize(
    "name",
    [
        *("low rank", "cholesky", "ldl", "kronecker", "two level", "coupled"),
        *("contributions", "nothing"),
    ],
)
def test_packed_and_unpacked_a_factor_is_the_same(name, rng):
    factor, arrays = _factors(rng)[name], []
    tree = json.loads(json.dumps(packing.pack(factor, arrays)))
    again = packing.unpack(tree, arrays)
    assert type(again) is type(factor)
    if factor is not None:
        layered = name in ("kronecker", "two level", "coupled", "contributions")
        rows = rng.normal(size=(3, 23 if layered else 12))
        solve = "precondition" if layered else "solve"
        assert (getattr(again, solve)(rows) == getattr(factor, solve)(rows)).all()
        assert packing.pack(again, copies := []) == tree
        assert all((a == b).all() for a, b in zip(arrays, copies, strict=True))


def test_only_arrays_leave_the_tree(rng):
    arrays = []
    tree = packing.pack(_kronecker(Layers(rng), 0.3), arrays)
    assert tree["class"] == "Kronecker"
    assert tree["fields"]["damping"] == 0.3
    assert [b["fields"]["name"] for b in tree["fields"]["blocks"]] == ["one", "two", ""]
    # Four arrays a layer's block, three the rest's.
    assert len(arrays) == 2 * 4 + 3


def test_many_vectors_are_turned_in_two_halves(rng):
    """Each by the same bases, in its own place: 5 of 200 x 150 numbers, of which one more is in a half."""
    basis_a, basis_s = rng.normal(size=(200, 30)), rng.normal(size=(150, 20))
    v = rng.normal(size=(5, 200, 150))
    positions = Positions.of(np.arange(30_000).reshape(200, 150))
    block = Block("", positions, basis_a, basis_s, np.ones((30, 20)))
    expected = np.einsum("ai,kab,bj->kij", basis_a, v, basis_s)
    with threadpoolctl.threadpool_limits(2, user_api="blas"), taking_turns():
        found = block.turned(v)
    assert truth.relative_error(found, expected) < 1e-12
