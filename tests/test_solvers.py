"""Every solver against matrices with a known spectrum and a known answer."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, NCG, Direct, LiSSA, solvers
from keras_influence.operators import Damped, Dense
from tests import truth
from tests.truth import L2

# (solver, relative error it must reach on a well-conditioned system)
EXACT = [
    (CG(tol=1e-10), 1e-8),
    (NCG(avextol=1e-12, tol=1e-6), 1e-6),
    (Direct(), 1e-11),
    (LiSSA(recursion_depth=3000), 1e-8),
]


def spectral(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues, and its eigenvectors."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    return (q * eigenvalues) @ q.T, q


SPECTRA = {
    "identity": np.ones(20),
    "spread": np.geomspace(0.1, 3, 20),
    "clustered": np.repeat([0.5, 1, 4], [7, 7, 6]),
    "low rank": np.r_[np.zeros(15), np.linspace(1, 5, 5)],
}


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=lambda s: type(s).__name__)
def test_solves_for_a_known_x(solver, tolerance, name, columns, rng):
    matrix, _ = spectral(SPECTRA[name])
    x = rng.normal(size=(20, columns))
    damped = matrix + 0.1 * np.eye(20)
    solution = solver.solve(Damped(Dense(matrix), 0.1), damped @ x)
    assert truth.relative_error(solution.x, x) < tolerance
    assert solution.converged.all()
    assert solution.residual.shape == (columns,)


@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=lambda s: type(s).__name__)
def test_a_zero_column_has_the_answer_zero(solver, tolerance, rng):
    matrix, _ = spectral(SPECTRA["spread"])
    v = rng.normal(size=(20, 2))
    v[:, 0] = 0
    solution = solver.solve(Dense(matrix), v)
    assert not solution.x[:, 0].any()
    assert truth.relative_error(solution.x[:, 1], np.linalg.solve(matrix, v[:, 1])) < tolerance


def test_cg_survives_bad_conditioning(rng):
    matrix, _ = spectral(np.geomspace(1e-6, 1, 30))
    v = rng.normal(size=(30, 3))
    solution = CG(tol=1e-8).solve(Dense(matrix), v)
    residual = np.linalg.norm(v - matrix @ solution.x, axis=0) / np.linalg.norm(v, axis=0)
    assert (residual < 1e-8).all()
    assert solution.residual == pytest.approx(residual, rel=1e-3)


@pytest.mark.parametrize("solver", [CG(), NCG()])
def test_negative_curvature_is_an_error_that_says_how_negative(solver, rng):
    matrix, _ = spectral(np.r_[-0.5, np.linspace(0.5, 2, 9)])
    with pytest.raises(ki.NegativeCurvatureError, match="gauss_newton.*direct") as caught:
        solver.solve(Dense(matrix), rng.normal(size=(10, 2)))
    assert -0.5 - 1e-9 <= caught.value.eigenvalue < 0


def test_cg_estimates_the_most_negative_eigenvalue_well():
    matrix, q = spectral(np.r_[-1.0, np.linspace(3, 4, 9)])
    v = 0.2 * q[:, :1] + q[:, 1:].sum(1, keepdims=True)
    with pytest.raises(ki.NegativeCurvatureError) as caught:
        CG(tol=1e-12).solve(Dense(matrix), v)
    assert caught.value.eigenvalue == pytest.approx(-1, abs=0.2)


def test_direct_solves_indefinite_systems_and_says_so(rng):
    matrix, _ = spectral(np.r_[-2, -0.5, 0.1, np.linspace(0.5, 2, 17)])
    x = rng.normal(size=(20, 3))
    solution = Direct().solve(Dense(matrix), matrix @ x)
    assert truth.relative_error(solution.x, x) < 1e-10
    assert not solution.positive_definite


def test_direct_refuses_a_singular_matrix():
    with pytest.raises(ki.SolverError, match="damping"):
        Direct().solve(Dense(np.diag([-1.0, 0.0, 1.0])), np.ones((3, 1)))


def test_direct_refuses_a_large_matrix():
    with pytest.raises(ValueError, match=r"20 x 20.*method='cg'"):
        Direct(max_size=19).solve(Dense(np.eye(20)), np.ones((20, 1)))


def test_lissa_with_too_small_a_scale_says_that_it_diverged(rng):
    matrix, _ = spectral(np.linspace(1, 10, 10))
    with pytest.raises(ki.DivergenceError, match="Raise `scale`"):
        LiSSA(scale=2, recursion_depth=500).solve(Dense(matrix), rng.normal(size=(10, 1)))


def test_lissa_is_a_truncated_neumann_series(rng):
    """T steps of the recurrence are Σ_{t≤T} (I - A/σ)ᵗ v / σ."""
    matrix, _ = spectral(np.linspace(0.1, 3, 6))
    v = rng.normal(size=(6, 1))
    with pytest.warns(ki.ConvergenceWarning, match="recursion_depth"):
        found = LiSSA(scale=4.0, recursion_depth=3).solve(Dense(matrix), v).x
    step = np.eye(6) - matrix / 4
    series = sum(np.linalg.matrix_power(step, t) for t in range(4)) @ v / 4
    assert truth.relative_error(found, series) < 1e-12


def test_missed_tolerance_warns_with_the_residual(rng):
    matrix, _ = spectral(np.geomspace(1e-3, 1, 20))
    with pytest.warns(ki.ConvergenceWarning, match="Raise `max_iter`"):
        solution = CG(max_iter=2).solve(Dense(matrix), rng.normal(size=(20, 2)))
    assert not solution.converged.any()
    assert (solution.residual > 1e-5).all()
    assert (solution.iterations == 2).all()


@pytest.mark.parametrize("method", ["cg", "direct", "ncg", "lissa"])
def test_all_methods_mean_the_same_damping_on_a_model(method, rng):
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    model = truth.softmax_model(3, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=(12, 2))
    exact = np.linalg.solve(hessian + 0.2 * np.eye(12), v)
    options = {"cg": CG(tol=1e-10), "lissa": LiSSA(batch_size=40, recursion_depth=1000)}
    solver = options.get(method, method)
    found = ki.inverse_hvp(model, v, (x, y), method=solver, damping=0.2, batch_size=7)
    assert truth.relative_error(found, exact) < 1e-6


def test_minibatch_lissa_is_within_its_noise(rng):
    """The spread over seeds is the stated error: the mean over seeds is closer than one run."""
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=12)
    exact = np.linalg.solve(hessian + 0.2 * np.eye(12), v)
    runs = [
        ki.inverse_hvp(
            model, v, (x, y), damping=0.2, method=LiSSA(batch_size=10, recursion_depth=300, seed=s)
        )
        for s in range(6)
    ]
    errors = [truth.relative_error(run, exact) for run in runs]
    assert max(errors) < 0.25
    assert truth.relative_error(np.mean(runs, 0), exact) < np.mean(errors) / 1.5


def test_same_seed_same_answer(rng):
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    model = truth.softmax_model(3, 3, l2=L2)
    v = rng.normal(size=12)
    method = LiSSA(batch_size=5, recursion_depth=100, seed=3, tol=10.0)
    first, second = (ki.inverse_hvp(model, v, (x, y), method=method) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("CG", CG),
        ({"class_name": "LiSSA", "config": {"recursion_depth": 7}}, LiSSA),
        (NCG(max_iter=3), NCG),
        (Direct().get_config(), Direct),
    ],
)
def test_get_takes_names_configs_and_objects(identifier, expected):
    assert type(solvers.get(identifier)) is expected


def test_config_round_trip():
    solver = LiSSA(scale=3.0, recursion_depth=10, num_samples=2, batch_size=4, seed=5)
    assert solvers.get(solver.get_config()).get_config() == solver.get_config()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CG(tol=0), "`tol` should be a number > 0"),
        (lambda: CG(max_iter=1.5), "`max_iter` should be an integer >= 1"),
        (lambda: LiSSA(scale=-1), "`scale`"),
        (lambda: LiSSA(recursion_depth=0), "`recursion_depth`"),
        (lambda: LiSSA(batch_size=True), "`batch_size`"),
        (lambda: NCG(avextol=float("nan")), "`avextol`"),
        (lambda: Direct(max_size=0), "`max_size`"),
        (lambda: solvers.get("newton"), "cg.*direct.*lissa.*ncg"),
        (lambda: solvers.get({"class_name": "Newton"}), "class_name"),
        (lambda: solvers.get({"class_name": "CG", "config": {"depth": 1}}), "depth"),
        (lambda: solvers.get(3), "`method`"),
    ],
)
def test_bad_options_are_refused_when_made(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
