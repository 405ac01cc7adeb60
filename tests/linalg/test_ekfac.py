"""EK-FAC on matrices with layers, and its refusal where there are none.

What the layers of a network are: tests/engine/test_kronecker.py.
"""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC, TwoLevel
from keras_influence.linalg.factors import kronecker
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.operators import Damped, Dense
from keras_influence.linalg.solvers import residuals
from tests import truth
from tests.linalg.matrices import Layers, dense_solve, spectral

SOLVERS = [EKFAC(), CG(preconditioner=EKFAC()), CG(preconditioner=TwoLevel()), ASTRA(), TwoLevel()]


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_matrix_without_layers_is_refused(solver, damping, rng):
    matrix, _ = spectral(np.linspace(1, 2, 8))
    with pytest.raises(ValueError, match="EKFAC.*ASTRA.*CG.*Received: Dense.*'cg'"):
        solver.solve(Damped(Dense(matrix), damping), rng.normal(size=(2, 8)))


def test_what_it_covers_is_said(rng):
    details = EKFAC().solve(Damped(Layers(rng), 0.1), rng.normal(size=(1, 23))).details
    assert details == {"layers": ["one", "two"], "parameters_outside": 5, "approximation": True}


def test_layers_that_cover_nothing_leave_an_exact_solve(rng):
    layers, v = Layers(rng, coupling=0.02), rng.normal(size=(2, 23))
    layers.cover(())
    solution = EKFAC().solve(Damped(layers, 0.1), v)
    expected = dense_solve(layers.matrix, v, 0.1)
    assert truth.relative_error(solution.x, expected) < 1e-12
    assert solution.details["layers"] == []
    assert solution.details["parameters_outside"] == 23
    assert "no layer is covered" in solution.details["note"]


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float16", 1e-2)])
def test_it_works_in_single_precision_where_the_curvature_is_no_finer(dtype, rounding, rng):
    """Its residual is that of the float64 matrix, to the rounding of a product."""
    layers, v = Layers(rng, coupling=0.05), rng.normal(size=(2, 23)).astype("float32")
    expected = EKFAC().solve(Damped(layers, 0.1), v)
    assert expected.x.dtype == np.float64
    layers.dtype = np.dtype(dtype)
    solution = EKFAC().solve(Damped(layers, 0.1), v)
    assert solution.x.dtype == solution.factor.blocks[0].q_inputs.dtype == np.float32
    assert truth.relative_error(solution.x, expected.x) < 1e-5
    left = v - solution.x @ (layers.matrix + 0.1 * np.eye(23))
    size = np.linalg.norm(left, axis=1) / np.linalg.norm(v, axis=1)
    assert truth.relative_error(solution.residual, size) < rounding


def test_of_a_large_rest_the_diagonal_is_taken(rng, monkeypatch):
    monkeypatch.setattr("keras_influence.linalg.solvers.ekfac._DENSE_REST", 1)
    layers, v = Layers(rng), rng.normal(size=(2, 23))
    x = EKFAC().solve(Damped(layers, 0.1), v).x
    expected = v[:, layers.rest] / (np.diag(layers.matrix)[layers.rest] + 0.1)
    assert truth.relative_error(x[:, layers.rest], expected) < 1e-12


def test_two_level_couples_the_largest_directions(rng):
    """With all of them it is exact but for the rest; with none it is EK-FAC."""
    layers, v = Layers(rng, coupling=0.05), rng.normal(size=(2, 23))
    found = [TwoLevel(rank).solve(Damped(layers, 0.1), v) for rank in (100, 9)]
    assert [s.details["coupled_directions"] for s in found] == [18, 9]
    rest, covered = layers.rest, np.setdiff1d(np.arange(23), layers.rest)
    matrix = layers.matrix.copy()
    matrix[np.ix_(covered, rest)] = matrix[np.ix_(rest, covered)] = 0
    matrix[np.ix_(rest, rest)] = np.diag(np.diag(matrix)[rest])
    assert truth.relative_error(found[0].x, dense_solve(matrix, v, 0.1)) < 1e-12
    exact = dense_solve(layers.matrix, v, 0.1)
    errors = [
        truth.relative_error(s.x, exact) for s in (*found, EKFAC().solve(Damped(layers, 0.1), v))
    ]
    assert errors[0] < errors[1]
    alone = TwoLevel(1).factorise(layers, 100.0)  # No eigenvalue matters beside this damping.
    assert alone.coarse.size == 0
    expected = dense_solve(np.diag(np.diag(matrix)), v, 100.0)
    assert truth.relative_error(alone.precondition(v), expected) < 0.05


def test_what_couples_layers_is_left_out_by_itself_and_found_by_others(rng):
    layers, v = Layers(rng, coupling=0.02), rng.normal(size=(3, 23))
    exact = dense_solve(layers.matrix, v, 0.1)
    alone, *others = (solver.solve(Damped(layers, 0.1), v) for solver in SOLVERS)
    diagonal = layers.matrix.copy()
    parts = [b.positions.array.ravel() for b in layers.layers] + [layers.rest]
    for part in parts:
        diagonal[np.ix_(part, np.setdiff1d(np.arange(23), part))] = 0
    assert truth.relative_error(alone.x, dense_solve(diagonal, v, 0.1)) < 1e-12
    assert truth.relative_error(alone.x, exact) > 0.01
    for solver, solution in zip(SOLVERS[1:4], others):
        assert truth.relative_error(solution.x, exact) < 3 * solver.tol
    assert others[0].passes < CG().solve(Damped(layers, 0.1), v).passes + 2


def test_a_singular_block_needs_damping(rng):
    layers, v = Layers(rng), rng.normal(size=(1, 23))
    layers.blocks[0].eigenvalues[0, 0] = 0
    with pytest.raises(ki.SolverError, match="EKFAC met a singular block.*`damping`"):
        EKFAC().solve(layers, v)
    assert np.isfinite(EKFAC().solve(Damped(layers, 0.1), v).x).all()


def test_an_indefinite_rest_is_refused(rng):
    layers = Layers(rng)
    layers.matrix[np.ix_(layers.rest, layers.rest)] -= 3 * np.eye(5)
    with pytest.raises(ki.SolverError, match="does not cover.*`damping`"):
        EKFAC().solve(Damped(layers, 0.1), rng.normal(size=(1, 23)))


def test_a_sketch_by_name_takes_no_layers_and_makes_way_where_there_is_none(rng):
    layers, v = Layers(rng, coupling=0.02), rng.normal(size=(3, 23))
    solver = CG(tol=1e-10, preconditioner="nystrom")
    solution = solver.solve(Damped(layers, 0.1), v)
    assert isinstance(solution.factor, LowRank)
    assert truth.relative_error(solution.x, dense_solve(layers.matrix, v, 0.1)) < 1e-8
    layers.matrix[np.ix_(layers.rest, layers.rest)] -= 2 * np.eye(5)  # The damping outweighs it.
    solution = solver.solve(Damped(layers, 4.0), v)
    assert solution.factor is None
    assert truth.relative_error(solution.x, dense_solve(layers.matrix, v, 4.0)) < 1e-8


@pytest.mark.parametrize(("numbers", "measured"), [(2**25, 16), (23 * 3, 3), (1, 1)])
def test_the_residual_is_measured_for_a_few_and_bounds_the_others(
    numbers, measured, rng, monkeypatch
):
    """Of long vectors for fewer: their products take most of what an approximation costs."""
    monkeypatch.setattr(residuals, "_NUMBERS", numbers)
    layers, v = Layers(rng, coupling=0.02), rng.normal(size=(20, 23))
    solution = EKFAC().solve(Damped(layers, 0.1), v)
    left = v - solution.x @ (layers.matrix + 0.1 * np.eye(23))
    exact = np.linalg.norm(left, axis=1) / np.linalg.norm(v, axis=1)
    same = np.isclose(solution.residual, exact, rtol=1e-6)
    assert same.sum() == measured
    assert (solution.residual[~same] == solution.residual[same].max()).all()


def test_vectors_go_through_a_block_so_many_at_a_time(rng, monkeypatch):
    """What a block makes of them is held for a few, and the answer is the same."""
    monkeypatch.setattr(kronecker, "_NUMBERS", 25)
    layers, v = Layers(rng), rng.normal(size=(5, 23))
    solution = EKFAC().solve(Damped(layers, 0.1), v)
    assert truth.relative_error(solution.x, dense_solve(layers.matrix, v, 0.1)) < 1e-10
