"""Every solver against matrices with a known spectrum and a known answer."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import (
    ASTRA,
    CG,
    EKFAC,
    MINRES,
    NCG,
    Arnoldi,
    Direct,
    LiSSA,
    Nystrom,
    TwoLevel,
    Woodbury,
)
from keras_influence.linalg.operators import Damped, Dense
from keras_influence.linalg.operators.network import Contributions
from keras_influence.linalg.solvers import residuals
from tests import truth
from tests.linalg.matrices import Layers, Network, Watched, dense_solve, spectral

# (solver, relative error it must reach on a well-conditioned system)
EXACT = [
    (CG(tol=1e-10), 1e-8),
    (CG(tol=1e-10, preconditioner=Nystrom(8)), 1e-8),
    (MINRES(tol=1e-10), 1e-8),
    (LiSSA(tol=1e-10), 1e-8),
    (Nystrom(20), 1e-6),
    (Arnoldi(20, tol=1e-6), 1e-8),
    (NCG(avextol=1e-12, tol=1e-6), 1e-6),
    (Direct(), 1e-11),
    (LiSSA(recursion_depth=3000), 1e-8),
]
# The same for those that need layers, on a matrix that is made of them.
LAYERED = [
    (EKFAC(), 1e-12),
    (CG(tol=1e-10, preconditioner=EKFAC()), 1e-8),
    (CG(tol=1e-10, preconditioner=TwoLevel(5)), 1e-8),
    (Woodbury(), 1e-10),
    (CG(tol=1e-10, preconditioner=Woodbury(5)), 1e-8),
    (ASTRA(tol=1e-10), 1e-8),
]

SPECTRA = {
    "identity": np.ones(20),
    "spread": np.geomspace(0.1, 3, 20),
    "clustered": np.repeat([0.5, 1, 4], [7, 7, 6]),
    "low rank": np.r_[np.zeros(15), np.linspace(1, 5, 5)],
}


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=str)
def test_solves_for_a_known_x(solver, tolerance, name, count, rng):
    matrix, _ = spectral(SPECTRA[name])
    x = rng.normal(size=(count, 20))
    rows = x @ (matrix + 0.1 * np.eye(20))
    solution = solver.solve(Damped(Dense(matrix), 0.1), rows)
    assert truth.relative_error(solution.x, x) < tolerance
    assert truth.relative_error(solution.x, dense_solve(matrix, rows, 0.1)) < tolerance
    assert solution.converged.all()
    assert solution.x.shape == (count, 20)
    assert solution.residual.shape == solution.iterations.shape == (count,)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("solver", "tolerance"), LAYERED, ids=str)
def test_solves_for_a_known_x_by_layers(solver, tolerance, count, rng):
    layers, x = Layers(rng), rng.normal(size=(count, 23))
    rows = x @ (layers.matrix + 0.1 * np.eye(23))
    solution = solver.solve(Damped(layers, 0.1), rows)
    assert truth.relative_error(solution.x, x) < tolerance
    assert truth.relative_error(solution.x, dense_solve(layers.matrix, rows, 0.1)) < tolerance
    assert solution.residual.max() < tolerance


@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=str)
def test_a_plain_matrix_is_a_system_without_damping(solver, tolerance, rng):
    matrix, _ = spectral(SPECTRA["spread"])
    x = rng.normal(size=(2, 20))
    solution = solver.solve(Dense(matrix), x @ matrix)
    assert truth.relative_error(solution.x, x) < tolerance
    assert (solution.x == solver.solve(Damped(Dense(matrix), 0.0), x @ matrix).x).all()


@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=str)
def test_a_zero_row_has_the_answer_zero(solver, tolerance, rng):
    matrix, _ = spectral(SPECTRA["spread"])
    v = rng.normal(size=(2, 20))
    v[0] = 0
    solution = solver.solve(Dense(matrix), v)
    assert not solution.x[0].any()
    assert truth.relative_error(solution.x[1], np.linalg.solve(matrix, v[1])) < tolerance


# (solver, relative residual it must reach)
ROBUST = [
    (CG(tol=1e-6), 1e-6),
    (CG(tol=1e-6, preconditioner=Nystrom(15)), 1e-6),
    (MINRES(tol=1e-6), 1e-6),
    (Direct(), 1e-9),
    (LiSSA(tol=1e-4), 1e-4),
]
HARD = {
    **{f"condition {c:g}": np.geomspace(1 / c, 1, 40) for c in (1, 1e2, 1e4, 1e6)},
    "clustered": np.repeat([1e-4, 1e-2, 1], [14, 13, 13]),
    "low rank and damping": np.r_[np.full(30, 1e-3), np.linspace(1, 5, 10)],
}


@pytest.mark.filterwarnings("ignore::keras_influence.ConvergenceWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(("solver", "tolerance"), ROBUST, ids=str)
def test_known_spectra(solver, tolerance, name, dtype, rng):
    """The residual is what was asked for, and what the solution says it is."""
    eigenvalues = HARD[name]
    matrix, _ = spectral(eigenvalues)
    v = rng.normal(size=(3, 40))
    v[2] = v[0]
    solution = solver.solve(Dense(matrix.astype(dtype)), v)
    residual = np.linalg.norm(v - solution.x @ matrix, axis=1) / np.linalg.norm(v, axis=1)
    # Rounding the matrix to float32 alone moves the answer by about κ · eps.
    rounding = np.finfo(dtype).eps * eigenvalues.max() / eigenvalues.min()
    assert solution.residual == pytest.approx(residual, rel=1e-2, abs=10 * rounding)
    # What of that a residual shows: A x loses eps of ‖A‖ ‖x‖, which here is far less than κ ‖v‖.
    assert (residual <= tolerance + min(10 * rounding, 0.01)).all()
    assert dtype == "float32" or solution.converged.all()
    assert (solution.converged == (solution.residual <= solver.tol)).all()
    assert truth.relative_error(solution.x[2], solution.x[0]) < 1e-3


def test_an_indefinite_system(rng):
    matrix, _ = spectral(np.r_[-2, -0.3, np.geomspace(0.05, 3, 28)])
    x = rng.normal(size=(3, 30))
    for solver in (MINRES(tol=1e-10), Direct()):
        solution = solver.solve(Dense(matrix), x @ matrix)
        assert truth.relative_error(solution.x, x) < 1e-7
        assert not solution.positive_definite


def test_a_singular_system_has_a_solution_in_its_range(rng):
    matrix, _ = spectral(np.r_[np.zeros(5), np.linspace(1, 2, 15)])
    v = rng.normal(size=(2, 20)) @ matrix
    for solver in (CG(tol=1e-8), MINRES(tol=1e-8)):
        solution = solver.solve(Dense(matrix), v)
        assert truth.relative_error(solution.x @ matrix, v) < 1e-7


def test_a_warm_start_saves_passes(rng):
    matrix, _ = spectral(np.geomspace(1e-3, 1, 40))
    v = rng.normal(size=(2, 40))
    exact = dense_solve(matrix, v)
    near = exact + 1e-6 * rng.normal(size=exact.shape)
    for solver in (CG(tol=1e-6, preconditioner=None), MINRES(tol=1e-6), LiSSA(tol=1e-4)):
        cold = solver.solve(Dense(matrix), v)
        warm = solver.solve(Dense(matrix), v, x0=near)
        assert warm.passes < cold.passes / 2
        assert warm.converged.all()
        assert solver.solve(Dense(matrix), v, x0=exact).converged.all()


def test_a_warm_start_is_left_as_it_was(rng):
    matrix, _ = spectral(np.geomspace(0.1, 1, 20))
    v, start = rng.normal(size=(2, 20)), rng.normal(size=(2, 20))
    kept = v.copy(), start.copy()
    for solver in (CG(), MINRES(), LiSSA(), NCG(), LiSSA(recursion_depth=500)):
        solver.solve(Dense(matrix), v, x0=start)
        assert (v == kept[0]).all()
        assert (start == kept[1]).all()


def test_a_recurrence_that_has_drifted_begins_again(rng):
    """From far away in float32: what the recurrence holds for the residual is not the residual."""
    matrix, _ = spectral(np.geomspace(0.1, 1, 40))
    x = rng.normal(size=(3, 40))
    start = 1e4 * rng.normal(size=(3, 40))
    for solver in (CG(), CG(preconditioner=Nystrom(10))):
        solution = solver.solve(Dense(matrix.astype("float32")), x @ matrix, x0=start)
        assert solution.converged.all()
        assert truth.relative_error(solution.x, x) < 1e-4


def test_passes_are_counted(rng):
    matrix, _ = spectral(np.geomspace(0.1, 1, 20))
    for solver in (CG(), CG(preconditioner=Nystrom(5)), MINRES(), Direct(), LiSSA()):
        watched = Watched(matrix)
        solution = solver.solve(Damped(watched, 0.1), rng.normal(size=(2, 20)))
        assert solution.passes == len(watched.widths) > 0


class Unknown(Network):
    """Contributions that would be worth it, and turn out not to be known."""

    def contributions_worth_it(self):
        return Contributions(5, False, 0.0)

    def contributions(self, most, nbytes):
        return ()


def test_a_sketch_stands_in_for_contributions_that_are_not_known(rng):
    """All of the matrix fits into it, so that one iteration is left, or two for rounding."""
    system, v = Damped(Layers(rng, kind=Unknown), 1e-3), rng.normal(size=(1, 23))
    found = CG(tol=1e-10).solve(system, v)
    assert found.iterations.max() <= 2
    assert truth.relative_error(found.x, dense_solve(system.operator.matrix, v, 1e-3)) < 1e-8


@pytest.mark.parametrize("solver", [Direct(), Nystrom(20), CG(preconditioner=Nystrom(5))], ids=str)
def test_a_factor_is_made_once(solver, rng):
    matrix, _ = spectral(np.geomspace(0.1, 1, 20))
    v, w = rng.normal(size=(2, 20)), rng.normal(size=(3, 20))
    system = Damped(Dense(matrix), 0.2)
    first = solver.solve(system, v)
    again = solver.solve(system, w, factor=first.factor)
    fresh = solver.solve(system, w)
    assert truth.relative_error(again.x, dense_solve(matrix, w, 0.2)) < 1e-4
    assert (again.x == fresh.x).all()
    assert again.passes == fresh.passes - 1


def test_missed_tolerance_warns_with_the_residual(rng):
    matrix, _ = spectral(np.geomspace(1e-3, 1, 20))
    with pytest.warns(ki.ConvergenceWarning, match="Raise `max_iter`"):
        solution = CG(max_iter=2, preconditioner=None).solve(
            Dense(matrix), rng.normal(size=(2, 20))
        )
    assert not solution.converged.any()
    assert (solution.residual > 1e-5).all()
    assert (solution.iterations == 2).all()


@pytest.mark.parametrize(
    ("rows", "x0", "message"),
    [
        (np.ones(4), None, r"`rows` should be .*\(k, 4\).*Received: shape \(4,\)"),
        (np.ones((4, 2)), None, r"`rows` should be .*\(k, 4\), one vector a row.*\(4, 2\)"),
        (np.ones((2, 4)), np.ones((4, 2)), r"`x0` should be .*\(2, 4\).*\(4, 2\)"),
        (np.ones((2, 4)), np.ones((1, 4)), r"`x0` should be .*\(2, 4\).*\(1, 4\)"),
    ],
)
def test_vectors_are_rows(rows, x0, message):
    with pytest.raises(ValueError, match=message):
        CG().solve(Dense(np.eye(4)), rows, x0=x0)


@pytest.mark.parametrize("count", [1, 16, 76])
def test_residuals_of_an_approximation_that_is_not_judged(rng, count):
    """Of many rows every fifth is measured, and the others have the largest of these."""
    matrix, _ = spectral(np.geomspace(1, 1e-3, 400))
    v = rng.normal(size=(count, 400)) * rng.uniform(0.1, 10, (count, 1))
    v[1::2] = v[:1]  # Equal ones among them.
    watched = Watched(matrix)
    solution = Arnoldi(rank=20).solve(Damped(watched, 0.05), v)
    left = v - solution.x @ (matrix + 0.05 * np.eye(400))
    true = np.linalg.norm(left, axis=1) / np.linalg.norm(v, axis=1)
    if count > 16:
        measured = true[::5].copy()
        true[:] = measured.max()
        true[::5] = measured
    assert np.abs(solution.residual / true - 1).max() < 1e-12
    assert solution.residual.min() > 0.1
    assert watched.widths[-1] == min(count, 16)


@pytest.mark.parametrize(("numbers", "asked"), [(400, [0]), (1200, [0, 4, 8])])
def test_residuals_of_long_vectors_are_measured_for_fewer(rng, monkeypatch, numbers, asked):
    monkeypatch.setattr(residuals, "_NUMBERS", numbers)
    matrix, _ = spectral(np.geomspace(1, 1e-3, 400))
    v, watched = rng.normal(size=(9, 400)), Watched(matrix)
    solution = Arnoldi(rank=20).solve(Damped(watched, 0.05), v)
    left = (v - solution.x @ (matrix + 0.05 * np.eye(400)))[asked]
    true = np.linalg.norm(left, axis=1) / np.linalg.norm(v[asked], axis=1)
    expected = np.full(9, true.max())
    expected[asked] = true
    assert np.abs(solution.residual / expected - 1).max() < 1e-12
    assert watched.widths[-1] == len(asked)


@pytest.mark.parametrize("size", [1e-38, 1e-44])
@pytest.mark.parametrize(
    "solver", [CG(), CG(preconditioner=None), MINRES(), Direct(), LiSSA()], ids=str
)
def test_a_row_that_has_all_but_vanished_is_solved_for_as_any_other(solver, size, rng):
    """In float32, whose products would vanish with it, or keep no more than a digit."""
    matrix, _ = spectral(np.linspace(0.5, 2, 20))
    rows = rng.normal(size=(3, 20))
    rows[1] *= size
    rows = rows.astype(np.float32)
    before = rows.copy()
    solution = solver.solve(Damped(Dense(matrix.astype(np.float32)), 0.1), rows)
    assert solution.converged.all()
    expected = dense_solve(matrix, rows.astype(float), 0.1)
    # What float32 can hold of the answer itself.
    assert np.abs(solution.x[1] - expected[1]).max() < 1e-4 * np.abs(expected[1]).max() + 2e-45
    assert truth.relative_error(solution.x[::2], expected[::2]) < 1e-4
    assert (rows == before).all()
