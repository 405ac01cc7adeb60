"""Every solver against matrices with a known spectrum and a known answer."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, CG, MINRES, NCG, Arnoldi, Direct, LiSSA, Nystrom
from keras_influence.linalg import solvers
from keras_influence.linalg.operators import Damped, Dense
from tests import truth
from tests.truth import L2

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
@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=str)
def test_solves_for_a_known_x(solver, tolerance, name, columns, rng):
    matrix, _ = spectral(SPECTRA[name])
    x = rng.normal(size=(20, columns))
    damped = matrix + 0.1 * np.eye(20)
    solution = solver.solve(Damped(Dense(matrix), 0.1), damped @ x)
    assert truth.relative_error(solution.x, x) < tolerance
    assert solution.converged.all()
    assert solution.residual.shape == (columns,)


@pytest.mark.parametrize(("solver", "tolerance"), EXACT, ids=str)
def test_a_zero_column_has_the_answer_zero(solver, tolerance, rng):
    matrix, _ = spectral(SPECTRA["spread"])
    v = rng.normal(size=(20, 2))
    v[:, 0] = 0
    solution = solver.solve(Dense(matrix), v)
    assert not solution.x[:, 0].any()
    assert truth.relative_error(solution.x[:, 1], np.linalg.solve(matrix, v[:, 1])) < tolerance


# (solver, relative residual it must reach in float64)
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
    v = rng.normal(size=(40, 3))
    v[:, 2] = v[:, 0]
    solution = solver.solve(Dense(matrix.astype(dtype)), v)
    residual = np.linalg.norm(v - matrix @ solution.x, axis=0) / np.linalg.norm(v, axis=0)
    # Rounding the matrix to float32 alone moves the answer by about κ · eps.
    rounding = np.finfo(dtype).eps * eigenvalues.max() / eigenvalues.min()
    assert solution.residual == pytest.approx(residual, rel=1e-2, abs=10 * rounding)
    if isinstance(solver, LiSSA) and not solution.converged.all():
        # A budget, or float32's own limit: it says that it has not arrived.
        assert eigenvalues.max() / eigenvalues.min() > 5e3 or 10 * rounding > tolerance
        assert (residual < 1).all()
    else:
        assert (residual <= tolerance + 10 * rounding).all()
    assert truth.relative_error(solution.x[:, 2], solution.x[:, 0]) < 1e-3


def test_an_indefinite_system(rng):
    matrix, _ = spectral(np.r_[-2, -0.3, np.geomspace(0.05, 3, 28)])
    x = rng.normal(size=(30, 3))
    for solver in (MINRES(tol=1e-10), Direct()):
        solution = solver.solve(Dense(matrix), matrix @ x)
        assert truth.relative_error(solution.x, x) < 1e-7
        assert not solution.positive_definite


def test_a_singular_system_has_a_solution_in_its_range(rng):
    matrix, _ = spectral(np.r_[np.zeros(5), np.linspace(1, 2, 15)])
    v = matrix @ rng.normal(size=(20, 2))
    for solver in (CG(tol=1e-8), MINRES(tol=1e-8)):
        solution = solver.solve(Dense(matrix), v)
        assert truth.relative_error(matrix @ solution.x, v) < 1e-7


def test_a_warm_start_saves_passes(rng):
    matrix, _ = spectral(np.geomspace(1e-3, 1, 40))
    v = rng.normal(size=(40, 2))
    exact = np.linalg.solve(matrix, v)
    near = exact + 1e-6 * rng.normal(size=exact.shape)
    for solver in (CG(tol=1e-6), MINRES(tol=1e-6), LiSSA(tol=1e-4)):
        cold = solver.solve(Dense(matrix), v)
        warm = solver.solve(Dense(matrix), v, x0=near)
        assert warm.passes < cold.passes / 2
        assert warm.converged.all()
        assert solver.solve(Dense(matrix), v, x0=exact).converged.all()


def test_converged_columns_drop_out_of_the_passes(rng):
    matrix, q = spectral(np.geomspace(1e-3, 1, 40))
    widths = []

    class Watched(Dense):
        def matmat(self, columns):
            widths.append(columns.shape[1])
            return super().matmat(columns)

    easy = q[:, -1]
    CG(tol=1e-8).solve(Watched(matrix), np.stack([easy, rng.normal(size=40)], axis=1))
    assert widths[0] == 2
    assert widths[5:-1] == [1] * (len(widths) - 6)


def test_right_hand_sides_share_their_directions(rng):
    """k columns of n unknowns need n / k passes and one to check; equal ones cost nothing."""
    matrix, _ = spectral(np.geomspace(0.1, 1, 40))
    v = rng.normal(size=(40, 10))
    together = CG(tol=1e-8).solve(Dense(matrix), v)
    assert truth.relative_error(together.x, np.linalg.solve(matrix, v)) < 1e-7
    assert together.passes <= 4 + 1
    widths = []

    class Watched(Dense):
        def matmat(self, columns):
            widths.append(columns.shape[1])
            return super().matmat(columns)

    equal = CG(tol=1e-8).solve(Watched(matrix), np.hstack([v[:, :2]] * 5))
    assert equal.converged.all()
    assert max(widths[:-1]) == 2


def test_passes_are_counted(rng):
    matrix, _ = spectral(np.geomspace(0.1, 1, 20))
    calls = []

    class Watched(Dense):
        def matmat(self, columns):
            calls.append(1)
            return super().matmat(columns)

    for solver in (CG(), CG(preconditioner=Nystrom(5)), MINRES(), Direct(), LiSSA()):
        calls.clear()
        solution = solver.solve(Watched(matrix), rng.normal(size=(20, 2)))
        assert solution.passes == len(calls) > 0


@pytest.mark.parametrize("solver", [Direct(), Nystrom(20), CG(preconditioner=Nystrom(5))], ids=str)
def test_a_factor_is_made_once(solver, rng):
    matrix, _ = spectral(np.geomspace(0.1, 1, 20))
    v, w = rng.normal(size=(20, 2)), rng.normal(size=(20, 3))
    first = solver.solve(Dense(matrix), v)
    again = solver.solve(Dense(matrix), w, factor=first.factor)
    fresh = solver.solve(Dense(matrix), w)
    assert (again.x == fresh.x).all()
    assert again.passes == fresh.passes - 1


def test_nystrom_preconditioner_saves_passes_on_a_low_rank_spectrum(rng):
    matrix, _ = spectral(np.r_[np.full(170, 1e-8), np.geomspace(1e-2, 10, 30)])
    damped, v = Damped(Dense(matrix), 1e-3), rng.normal(size=(200, 1))
    plain = CG().solve(damped, v)
    helped = CG(preconditioner=Nystrom(30)).solve(damped, v)
    assert helped.converged.all()
    assert helped.passes < plain.passes / 3


def test_nystrom_alone_is_exact_for_low_rank_and_damping(rng):
    matrix, _ = spectral(np.r_[np.zeros(40), np.linspace(1, 3, 10)])
    v = rng.normal(size=(50, 2))
    found = Nystrom(20).solve(Damped(Dense(matrix), 0.01), v).x
    assert truth.relative_error(found, np.linalg.solve(matrix + 0.01 * np.eye(50), v)) < 1e-6


def test_nystrom_refuses_an_indefinite_matrix(rng):
    matrix, _ = spectral(np.r_[-1, np.linspace(0.1, 1, 19)])
    with pytest.raises(ki.SolverError, match="gauss_newton"):
        Nystrom(20).solve(Dense(matrix), rng.normal(size=(20, 1)))


def test_lissa_says_what_it_settled_on(rng):
    matrix, _ = spectral(np.linspace(0.5, 2, 20))
    details = LiSSA().solve(Dense(matrix), rng.normal(size=(20, 1))).details
    assert set(details) == {"scale", "batch_size", "extra_ridge"}
    plain = LiSSA(scale=5.0, recursion_depth=100).solve(Dense(matrix), rng.normal(size=(20, 1)))
    assert plain.details["extra_ridge"] == pytest.approx(5.0 / 100)


@pytest.mark.parametrize("solver", [CG(), NCG()])
def test_negative_curvature_is_an_error_that_says_how_negative(solver, rng):
    matrix, _ = spectral(np.r_[-0.5, np.linspace(0.5, 2, 9)])
    with pytest.raises(ki.NegativeCurvatureError, match="gauss_newton.*direct") as caught:
        solver.solve(Dense(matrix), rng.normal(size=(10, 2)))
    assert -0.5 - 1e-9 <= caught.value.eigenvalue < 0


def test_cg_says_that_a_product_is_not_finite(rng):
    matrix, _ = spectral(np.linspace(0.5, 2, 10))
    matrix[3, 4] = np.nan
    with pytest.raises(ki.SolverError, match="product with the curvature is NaN.*gauss_newton"):
        CG().solve(Dense(matrix), rng.normal(size=(10, 2)))


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
    series = sum(np.linalg.matrix_power(step, t) for t in range(4)) @ v / 4.0
    assert truth.relative_error(found, series) < 1e-12


def test_missed_tolerance_warns_with_the_residual(rng):
    matrix, _ = spectral(np.geomspace(1e-3, 1, 20))
    with pytest.warns(ki.ConvergenceWarning, match="Raise `max_iter`"):
        solution = CG(max_iter=2).solve(Dense(matrix), rng.normal(size=(20, 2)))
    assert not solution.converged.any()
    assert (solution.residual > 1e-5).all()
    assert (solution.iterations == 2).all()


# EK-FAC is an approximation by design: tests/engine/test_kronecker.py.
@pytest.mark.parametrize("method", sorted(set(solvers.SOLVERS) - {"ekfac"}))
def test_all_methods_mean_the_same_damping_on_a_model(method, rng):
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    model = truth.softmax_model(3, 3, l2=L2)
    hessian = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    v = rng.normal(size=(12, 2))
    exact = np.linalg.solve(hessian + 0.2 * np.eye(12), v)
    options = {
        "cg": CG(tol=1e-10),
        "minres": MINRES(tol=1e-10),
        "lissa": LiSSA(batch_size=10, tol=1e-8),
        "astra": ASTRA(batch_size=10, tol=1e-8),
        "nystrom": Nystrom(12),
    }
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


def test_self_tuned_lissa_on_models_is_within_one_percent_of_exact(rng):
    """Gauss-Newton of networks at several dampings, with defaults; minibatches of 32."""
    for activation, width in (("tanh", 6), ("relu", 10), ("gelu", 4)):
        inputs = keras.Input((5,))
        hidden = keras.layers.Dense(width, activation)(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model.compile("adam", "sparse_categorical_crossentropy")
        train = rng.normal(size=(300, 5)), rng.integers(0, 3, 300)
        model.fit(*train, epochs=3, verbose=0)
        p = model.count_params()
        matrix = ki.hvp(model, np.eye(p), train, curvature="gauss_newton")
        v = np.array([truth.gradient(model, train[0][[i]], train[1][[i]]) for i in range(3)]).T
        for damping in (1e-1, 1e-2, 1e-3):
            found = ki.inverse_hvp(
                model, v, train, method="lissa", damping=damping, curvature="gauss_newton"
            )
            exact = np.linalg.solve(matrix + damping * np.eye(p), v)
            assert truth.relative_error(found, exact) < 0.01


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
    for solver in (
        LiSSA(scale=3.0, recursion_depth=10, num_samples=2, batch_size=4, seed=5),
        CG(tol=1e-3, preconditioner=Nystrom(7)),
        LiSSA(preconditioner=Nystrom(3)),
    ):
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
