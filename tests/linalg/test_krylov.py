"""CG, MINRES and NCG: what their iterations cost and what stops them."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, NCG, Nystrom
from keras_influence.errors import SingularError
from keras_influence.linalg.factors.dense import DenseFactor
from keras_influence.linalg.operators import Damped, Dense
from tests import truth
from tests.linalg.matrices import Layers, Network, Watched, dense_solve, spectral


def test_converged_rows_drop_out_of_the_passes(rng):
    matrix, q = spectral(np.geomspace(1e-3, 1, 40))
    watched, easy = Watched(matrix), q[:, -1]
    CG(tol=1e-8, preconditioner=None).solve(watched, np.stack([easy, rng.normal(size=40)]))
    assert watched.widths[0] == 2
    assert watched.widths[5:-1] == [1] * (len(watched.widths) - 6)


def test_right_hand_sides_share_their_directions(rng):
    """k vectors of n unknowns need n / k passes and one to check; equal ones cost nothing."""
    matrix, _ = spectral(np.geomspace(0.1, 1, 40))
    v = rng.normal(size=(10, 40))
    plain = CG(tol=1e-8, preconditioner=None)
    together = plain.solve(Dense(matrix), v)
    assert truth.relative_error(together.x, dense_solve(matrix, v)) < 1e-7
    assert together.passes <= 4 + 1
    watched = Watched(matrix)
    equal = plain.solve(watched, np.vstack([v[:2]] * 5))
    assert equal.converged.all()
    assert max(watched.widths[:-1]) == 2


@pytest.mark.parametrize("preconditioner", [Nystrom(30), "auto", "nystrom"])
def test_a_preconditioner_saves_passes_on_a_low_rank_spectrum(preconditioner, rng):
    matrix, _ = spectral(np.r_[np.full(170, 1e-8), np.geomspace(1e-2, 10, 30)])
    damped, v = Damped(Dense(matrix), 1e-3), rng.normal(size=(1, 200))
    plain = CG(preconditioner=None).solve(damped, v)
    helped = CG(preconditioner=preconditioner).solve(damped, v)
    assert helped.converged.all()
    assert helped.passes < plain.passes / 3


@pytest.mark.parametrize("solver", [CG(), NCG()])
def test_negative_curvature_is_an_error_that_says_how_negative(solver, rng):
    matrix, _ = spectral(np.r_[-0.5, np.linspace(0.5, 2, 9)])
    with pytest.raises(ki.NegativeCurvatureError, match="gauss_newton.*direct") as caught:
        solver.solve(Dense(matrix), rng.normal(size=(2, 10)))
    assert -0.5 - 1e-9 <= caught.value.eigenvalue < 0


@pytest.mark.parametrize(
    ("dtype", "error", "words"),
    [
        (
            "float32",
            SingularError,
            "singular but for rounding.*what is below .*e-07 is rounding. Set `damping`",
        ),
        ("float64", ki.NegativeCurvatureError, "met negative curvature"),
    ],
)
def test_what_rounding_may_be_is_not_called_negative(dtype, error, words):
    """An eigenvalue of -2e-7 beside 1: in float32 nobody can tell."""
    matrix, q = spectral(np.r_[-2e-7, np.linspace(0.5, 1, 9)])
    operator, v = Dense(matrix.astype(dtype)), np.stack([q[:, -1], q[:, 0]])
    with pytest.raises(error, match=words) as caught:
        CG(preconditioner=None).solve(operator, v)
    assert caught.type is error


def test_rounding_is_that_of_the_largest_eigenvalue_whatever_the_directions_are():
    """As where a preconditioner keeps them away from it."""
    matrix, q = spectral(np.r_[-2e-7, np.linspace(0.5, 1, 9)])
    with pytest.raises(SingularError, match="singular but for rounding"):
        CG(preconditioner=None).solve(Dense(matrix.astype("float32")), q[:, :1].T)


def test_cg_estimates_the_most_negative_eigenvalue_well():
    matrix, q = spectral(np.r_[-1.0, np.linspace(3, 4, 9)])
    v = 0.2 * q[:, 0] + q[:, 1:].sum(1)
    with pytest.raises(ki.NegativeCurvatureError) as caught:
        CG(tol=1e-12).solve(Dense(matrix), v[None])
    assert caught.value.eigenvalue == pytest.approx(-1, abs=0.2)


def test_without_damping_directions_of_no_curvature_are_said(rng):
    matrix, _ = spectral(np.r_[np.zeros(5), np.linspace(1, 2, 15)])
    with pytest.raises(ki.SolverError, match="singular without damping: use `damping`"):
        Nystrom(20).solve(Dense(matrix), rng.normal(size=(2, 20)))


def test_cg_says_that_a_product_is_not_finite(rng):
    matrix, _ = spectral(np.linspace(0.5, 2, 10))
    matrix[3, 4] = np.nan
    with pytest.raises(ki.SolverError, match="product with the curvature is NaN.*gauss_newton"):
        CG().solve(Dense(matrix), rng.normal(size=(2, 10)))


def test_a_sketch_is_made_only_where_it_is_needed(rng):
    v = rng.normal(size=(2, 200))
    easy, hard = np.geomspace(0.5, 1, 200), np.r_[np.geomspace(1e-2, 10, 40), np.zeros(160)]
    for values, sketched in [(easy, False), (hard, True)]:
        matrix, _ = spectral(values)
        watched = Watched(matrix)
        solution = CG(tol=1e-6, preconditioner="nystrom").solve(Damped(watched, 1e-3), v)
        assert truth.relative_error(solution.x, dense_solve(matrix, v, 1e-3)) < 1e-3
        assert solution.converged.all()
        assert (50 in watched.widths) is sketched
        assert (solution.factor is not None) is sketched


def test_a_sketch_that_serves_many_is_made_at_once(rng):
    matrix, _ = spectral(np.geomspace(0.5, 1, 200))
    watched = Watched(matrix)
    CG(preconditioner="nystrom").solve(watched, rng.normal(size=(60, 200)))
    assert watched.widths[0] == 50
    assert CG(preconditioner="nystrom").prepare(Dense(matrix), 0.1) is not None


@pytest.mark.parametrize("preconditioner", ["auto", "nystrom"])
def test_where_iterations_creep_the_matrix_is_written_out(preconditioner, rng):
    """No sketch of 50 knows 300 eigenvalues over nine orders of magnitude."""
    matrix, _ = spectral(np.geomspace(1e-6, 1e3, 300))
    watched, v = Watched(matrix), rng.normal(size=(1, 300))
    solution = CG(tol=1e-8, preconditioner=preconditioner).solve(Damped(watched, 1e-7), v)
    assert truth.relative_error(solution.x, dense_solve(matrix, v, 1e-7)) < 1e-6
    assert solution.converged.all()
    assert {1, 50, 300} == set(watched.widths)
    assert sum(watched.widths) < 3 * 300
    again = CG(tol=1e-8).solve(Damped(watched, 1e-7), v, factor=solution.factor)
    assert again.converged.all() and again.passes <= 3


def test_what_the_matrix_itself_does_not_reach_is_not_sought_for_long(rng):
    """In float32 a damping of 1e-6 of the largest eigenvalue is mostly rounding, for products too."""
    matrix, _ = spectral(np.geomspace(1e-2, 1e4, 300))
    watched, v = Watched(matrix.astype(np.float32)), rng.normal(size=(1, 300))
    with pytest.warns(ki.ConvergenceWarning):
        solution = CG(tol=1e-6).solve(Damped(watched, 1e-2), v)
    after = watched.widths[watched.widths.index(300) + 1 :]
    assert isinstance(solution.factor, DenseFactor)
    assert len(after) < 30


def test_what_is_negative_is_no_preconditioner_when_written_out(rng):
    matrix, q = spectral(np.r_[-1e-4, np.geomspace(1e-4, 1e3, 299)])
    watched, v = Watched(matrix), (q[:, 1:] @ rng.normal(size=299))[None]
    with pytest.warns(ki.ConvergenceWarning):
        solution = CG(tol=1e-8).solve(watched, v)
    assert 300 in watched.widths
    assert not isinstance(solution.factor, DenseFactor)


class Counted(Network):
    """Counts how often its blocks are asked for."""

    asked = 0

    def kronecker(self, pseudo_gradients, seed):
        self.asked += 1
        return super().kronecker(pseudo_gradients, seed)


def test_of_what_is_doubtful_layers_are_asked_for_after_one_iteration(rng):
    v = rng.normal(size=(2, 23))
    definite, negative = Layers(rng, 0.02, Counted), Layers(rng, 0.02, Counted)
    definite.doubtful = negative.doubtful = True
    solution = CG(tol=1e-8).solve(Damped(definite, 0.1), v)
    assert truth.relative_error(solution.x, dense_solve(definite.matrix, v, 0.1)) < 1e-7
    assert definite.network.asked == 1
    assert solution.factor is not None
    again = CG(tol=1e-8).solve(Damped(definite, 0.1), v, factor=solution.factor)
    assert definite.network.asked == 1
    assert again.passes < solution.passes

    negative.matrix -= 3 * np.eye(23)
    with pytest.raises(ki.SolverError, match="negative curvature"):
        CG().solve(Damped(negative, 0.1), v)
    assert negative.network.asked == 0


def test_an_operator_keeps_what_it_gives_back(rng):
    """A damped one adds to its product, but never to what it was asked about."""

    class Identity(Dense):
        def matmat(self, rows):
            return rows

    rows = rng.normal(size=(2, 5))
    before = rows.copy()
    np.testing.assert_allclose(Damped(Identity(np.eye(5)), 0.5).matmat(rows), 1.5 * before)
    assert (rows == before).all()
