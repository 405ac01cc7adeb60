"""Direct, Nyström and Arnoldi: solvers that are their factor."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import Arnoldi, ConvergenceWarning, Direct, Nystrom
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.operators import Damped, Dense
from tests import truth
from tests.linalg.matrices import Watched, dense_solve, spectral


@pytest.mark.parametrize("solver", [Nystrom(12), Arnoldi(12, eigen_tol=1e-12)], ids=str)
def test_factors_hold_the_eigenvalues_of_the_undamped_curvature(solver):
    """To the last digits, though λ is 1e10 times as large as they are."""
    values = np.r_[np.linspace(1e-4, 2e-4, 8), np.zeros(22)]
    matrix, _ = spectral(values)
    factor = solver.factorise(Dense(matrix), 1e6)
    assert factor.damping == 1e6
    found = np.sort(factor.eigenvalues)[::-1]
    assert found[:8] == pytest.approx(np.sort(values)[:-9:-1], rel=1e-6)
    assert np.abs(found[8:]).max() < 1e-15


def test_direct_solves_indefinite_systems_and_says_so(rng):
    matrix, _ = spectral(np.r_[-2, -0.5, 0.1, np.linspace(0.5, 2, 17)])
    x = rng.normal(size=(3, 20))
    solution = Direct().solve(Dense(matrix), x @ matrix)
    assert truth.relative_error(solution.x, x) < 1e-10
    assert not solution.positive_definite


def test_direct_refuses_a_singular_matrix():
    with pytest.raises(ki.SolverError, match="damping"):
        Direct().solve(Dense(np.diag([-1.0, 0.0, 1.0])), np.ones((1, 3)))


def test_direct_refuses_a_large_matrix():
    with pytest.raises(ValueError, match=r"20 x 20.*method='cg'"):
        Direct(max_size=19).solve(Dense(np.eye(20)), np.ones((1, 20)))


def test_nystrom_alone_is_exact_for_low_rank_and_damping(rng):
    matrix, _ = spectral(np.r_[np.zeros(40), np.linspace(1, 3, 10)])
    v = rng.normal(size=(2, 50))
    found = Nystrom(20).solve(Damped(Dense(matrix), 0.01), v).x
    assert truth.relative_error(found, dense_solve(matrix, v, 0.01)) < 1e-6


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_nystrom_refuses_an_indefinite_matrix(damping, rng):
    matrix, _ = spectral(np.r_[-1, np.linspace(0.1, 1, 19)])
    with pytest.raises(ki.SolverError, match="gauss_newton"):
        Nystrom(20).solve(Damped(Dense(matrix), damping), rng.normal(size=(1, 20)))


def test_arnoldi_is_exact_for_low_rank_and_damping(rng):
    matrix, _ = spectral(np.r_[np.zeros(40), np.geomspace(0.5, 20, 10)])
    v = rng.normal(size=(3, 50))
    solution = Arnoldi(rank=10, eigen_tol=1e-12).solve(Damped(Dense(matrix), 0.1), v)
    assert truth.relative_error(solution.x, dense_solve(matrix, v, 0.1)) < 1e-9
    assert solution.passes < 50


def test_arnoldi_can_drop_what_is_outside(rng):
    """Schioppa et al.'s form: only the kept eigenvectors, each by its own inverse."""
    values = np.r_[np.linspace(0.01, 0.1, 30), [-8, 4, 5, 9]]
    matrix, q = spectral(values)
    v = rng.normal(size=(2, 34))
    solution = Arnoldi(rank=4, complement="drop", eigen_tol=1e-12).solve(
        Damped(Dense(matrix), 0.5), v
    )
    kept = q[:, -4:]
    expected = (v @ kept / (values[-4:] + 0.5)) @ kept.T
    assert truth.relative_error(solution.x, expected) < 1e-9
    assert not solution.positive_definite
    assert solution.details["approximation"]


@pytest.mark.parametrize(("damping", "definite"), [(0.9, False), (1 - 4e-12, True)])
def test_arnoldi_takes_no_rounding_for_a_negative_eigenvalue(damping, definite, rng):
    matrix, v = np.diag(np.r_[8e3, 5e3, 4e3, -1.0, np.zeros(16)]), rng.normal(size=(1, 20))
    solver = Arnoldi(rank=4, complement="drop", eigen_tol=1e-12)
    assert solver.solve(Damped(Dense(matrix), damping), v).positive_definite == definite


def test_arnoldi_keeps_what_is_large_in_the_curvature_whatever_the_damping(rng):
    """-3 is larger than 2, though -3 + 2 is smaller than 2 + 2: outside, 2 counts as 0."""
    matrix, q = spectral(np.r_[-3.0, 2.0, np.zeros(8)])
    v = rng.normal(size=(2, 10))
    found = Arnoldi(rank=1, eigen_tol=1e-12).solve(Damped(Dense(matrix), 2.0), v).x
    expected = dense_solve(-3.0 * np.outer(q[:, 0], q[:, 0]), v, 2.0)
    assert truth.relative_error(found, expected) < 1e-9


def test_arnoldi_warns_where_a_tolerance_is_given(rng):
    matrix, _ = spectral(np.linspace(0.1, 1, 30))
    with pytest.warns(ki.ConvergenceWarning, match="rank"):
        Arnoldi(rank=3, tol=0.01).solve(Damped(Dense(matrix), 0.1), rng.normal(size=(1, 30)))


def _many_rows(matrix, along, rng):
    """600 rows that have no part in a direction, but for one."""
    rows = rng.normal(size=(600, len(matrix)))
    rows -= np.outer(rows @ along, along)
    rows[333] += along
    return rows


def test_residuals_of_many_rows_are_bounded_by_few_products(rng):
    matrix, vectors = spectral(np.geomspace(1, 10, 20))
    operator, rows = Watched(matrix), _many_rows(matrix, vectors[:, 0], rng)
    rows[17] = 0
    solution = Direct().solve(operator, rows)
    left = np.linalg.norm(rows - solution.x @ matrix, axis=1)
    # Writing the matrix out takes one product, and 5 times 128 rows have four sums each.
    assert operator.widths == [20, 20]
    assert (left <= solution.residual * np.linalg.norm(rows, axis=1))[solution.x.any(1)].all()
    assert solution.residual.max() < 1e-12 and solution.converged.all()
    assert not solution.x[17].any()


@pytest.mark.parametrize("length", [1, 1e-4])
def test_a_single_wrong_answer_among_many_is_found(length, rng):
    """By a factor of another matrix, off in a direction that one row has a part in, as short as that may be."""
    matrix, vectors = spectral(np.geomspace(1, 10, 20))
    operator, rows = Watched(matrix), _many_rows(matrix, vectors[:, 0], rng)
    rows[333] *= length
    wrong = DenseFactor.of(matrix + 0.2 * np.outer(vectors[:, 0], vectors[:, 0]))
    with pytest.warns(ConvergenceWarning, match="1 of 600"):
        solution = Direct().solve(operator, rows, factor=wrong)
    left = np.linalg.norm(rows[333] - solution.x[333] @ matrix) / np.linalg.norm(rows[333])
    assert left > 1e-2
    assert solution.residual[333] == pytest.approx(left)
    assert np.flatnonzero(~solution.converged) == [333]
    assert operator.widths == [20, 128]  # Only those beside it are measured one by one.
