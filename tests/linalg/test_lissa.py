"""LiSSA: the paper's recurrence where its knobs are given, self-tuning on a zoo where not."""

import itertools
import pathlib
import sys
import warnings

import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, LiSSA
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped, Dense
from keras_influence.linalg.operators.base import LinearOperator
from tests import truth
from tests.conftest import set_precision
from tests.linalg.matrices import Layers, dense_solve, spectral

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import lissa_zoo

# The script runs all models, at two sizes and three dampings: these are some of the quicker ones.
SPREAD = [
    "ridge", "weighted logistic", "MLP tanh", "MLP Huber", "Conv2D", "BatchNormalization",
    "LayerNormalization", "Embedding", "several outputs", "residual",
]  # fmt: skip


# At λ = 0.001 CG itself needs more than 200 passes for these.
HARD = ("LayerNormalization", "residual")


@pytest.fixture
def float32():
    set_precision("float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_with_defaults_within_one_percent_of_the_converged_answer(name, float32):
    damping = 0.01 if name in HARD else (0.1, 0.01, 0.001)[SPREAD.index(name) % 3]
    problem, rows = lissa_zoo.problem(name, n=200, epochs=4)
    dense = problem.curvature("gauss_newton").to_dense()
    row = lissa_zoo.compare(problem, rows, damping, dense)
    assert row["cg_error"] < 0.01
    assert row["cg_passes"] <= 200
    assert row["lissa_error"] < 0.01
    assert row["lissa_residual"] < 1e-4


class Noisy(LinearOperator):
    """A matrix whose minibatches are the matrices given, in turn, each a `share` of the data."""

    def __init__(self, matrices, share=1.0):
        self._minibatches = [Dense(matrix) for matrix in matrices]
        for minibatch in self._minibatches:
            minibatch.share = share
        self.mean = np.mean(matrices, axis=0)
        self.size, self.dtype = len(self.mean), self.mean.dtype

    def matmat(self, rows):
        return rows @ self.mean

    def samples(self, batch_size, seed):
        return itertools.cycle(self._minibatches)


def replayed(matrices, rows, scale, depth, repeats):
    """h ← v + h - A_B h / σ, from h = v; x = h / σ; the mean over repeats."""
    v = rows.T
    stream, answers = 0, []
    for _ in range(repeats):
        h = v
        for _ in range(depth):
            h = v + h - matrices[stream % len(matrices)] @ h / scale
            stream += 1
        answers.append(h / scale)
    return np.mean(answers, axis=0).T


@pytest.mark.filterwarnings("ignore::keras_influence.ConvergenceWarning")
@pytest.mark.parametrize(("depth", "repeats"), [(1, 1), (7, 1), (40, 3)])
def test_with_explicit_knobs_it_is_the_papers_recurrence(depth, repeats, rng):
    factors = rng.normal(size=(5, 8, 8))
    matrices = factors @ factors.transpose(0, 2, 1) / 8 + 0.1 * np.eye(8)
    v = rng.normal(size=(2, 8))
    solver = LiSSA(scale=6.0, recursion_depth=depth, num_samples=repeats, batch_size=4)
    solution = solver.solve(Noisy(matrices), v)
    expected = replayed(matrices, v, 6.0, depth, repeats)
    assert truth.relative_error(solution.x, expected) < 1e-12
    assert solution.details == {"scale": 6.0, "batch_size": 4.0, "extra_ridge": 6.0 / depth}
    assert (solution.iterations == depth * repeats).all()


@pytest.mark.filterwarnings("ignore::keras_influence.ConvergenceWarning")
def test_on_a_model_it_is_the_recurrence_over_the_same_minibatches(rng):
    """Each minibatch's Hessian in closed form, over the examples that the sampler drew."""
    x, y = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    model = truth.softmax_model(3, 3, l2=truth.L2)
    problem = Problem(model, (x, y))
    operator = Damped(problem.curvature("hessian"), 0.2)
    v, theta = rng.normal(size=(2, 12)), truth.get_flat(model)
    batches = problem.train.sampler(4, seed=3)
    hessians = [
        truth.SoftmaxRegression(xb.numpy(), yb.numpy().ravel(), 3, truth.L2).hessian(theta)
        + 0.2 * np.eye(12)
        for (xb, yb), _ in zip(batches, range(50))
    ]
    solver = LiSSA(scale=3.0, recursion_depth=25, num_samples=2, batch_size=4, seed=3)
    expected = replayed(hessians, v, 3.0, 25, 2)
    assert truth.relative_error(solver.solve(operator, v).x, expected) < 1e-10


@pytest.mark.slow
def test_the_batch_size_grows_with_the_data_within_bounds(rng):
    for n, expected in ((20, 32), (800, 50), (6000, 256)):
        x = rng.normal(size=(n, 2))
        model = truth.ridge_model(2, l2=0.25)
        problem = Problem(model, (x, x @ [1.0, 2.0]))
        solution = LiSSA().solve(Damped(problem.curvature("hessian"), 0.1), np.ones((1, 2)))
        assert solution.details["batch_size"] == expected
        assert solution.converged.all()


def test_too_small_a_scale_only_costs_passes_where_it_tunes_itself(rng):
    q = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    matrix = (q * np.geomspace(0.01, 10, 20)) @ q.T
    v = rng.normal(size=(2, 20))
    for scale in (1e-3, 0.1, 10.0, 1000.0):
        solution = LiSSA(scale=scale, preconditioner=None).solve(Dense(matrix), v)
        assert truth.relative_error(solution.x, dense_solve(matrix, v)) < 1e-3


def test_minibatches_without_a_rank_in_common_do_no_harm(rng):
    """Each minibatch is a rank-one matrix, a hundred times the mean along its own axis."""
    matrices = [100 * np.diag(np.eye(100)[i]) for i in rng.permutation(100)]
    noisy = Noisy(matrices, share=0.01)
    v = rng.normal(size=(1, 100))
    solution = LiSSA().solve(Damped(noisy, 1e-2), v)
    assert truth.relative_error(solution.x, v / 1.01) < 1e-4


def test_negative_curvature_is_reported(rng):
    matrix = np.diag(np.r_[-0.5, np.linspace(0.5, 2, 9)])
    with pytest.raises(ki.NegativeCurvatureError, match="LiSSA.*gauss_newton") as caught:
        LiSSA().solve(Dense(matrix), rng.normal(size=(2, 10)))
    assert -0.5 <= caught.value.eigenvalue < 0


def test_negative_curvature_is_reported_by_the_solver_that_met_it(rng):
    layers = Layers(rng)
    layers._matrix = layers.matrix - np.diag(np.r_[5.0, np.zeros(22)])
    with pytest.raises(ki.NegativeCurvatureError, match="ASTRA.*gauss_newton"):
        ASTRA().solve(layers, rng.normal(size=(1, 23)))


def test_the_budget_is_kept_and_missing_it_is_said(rng):
    q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    matrix = (q * np.geomspace(1e-6, 1, 60)) @ q.T
    with pytest.warns(ki.ConvergenceWarning, match="max_passes"):
        solution = LiSSA(max_passes=40).solve(Dense(matrix), rng.normal(size=(1, 60)))
    assert solution.passes <= 45
    assert not solution.converged.any()
    assert solution.residual[0] > 1e-5


def test_lissa_says_what_it_settled_on(rng):
    matrix, _ = spectral(np.linspace(0.5, 2, 20))
    details = LiSSA().solve(Dense(matrix), rng.normal(size=(1, 20))).details
    assert set(details) == {"scale", "batch_size", "extra_ridge"}
    plain = LiSSA(scale=5.0, recursion_depth=100).solve(Dense(matrix), rng.normal(size=(1, 20)))
    assert plain.details["extra_ridge"] == pytest.approx(5.0 / 100)


def test_lissa_with_too_small_a_scale_says_that_it_diverged(rng):
    matrix, _ = spectral(np.linspace(1, 10, 10))
    with pytest.raises(ki.DivergenceError, match="Raise `scale`"):
        LiSSA(scale=2, recursion_depth=500).solve(Dense(matrix), rng.normal(size=(1, 10)))


def test_lissa_is_a_truncated_neumann_series(rng):
    """T steps of the recurrence are Σ_{t≤T} (I - A/σ)ᵗ v / σ."""
    matrix, _ = spectral(np.linspace(0.1, 3, 6))
    v = rng.normal(size=(1, 6))
    with pytest.warns(ki.ConvergenceWarning, match="recursion_depth"):
        found = LiSSA(scale=4.0, recursion_depth=3).solve(Dense(matrix), v).x
    step = np.eye(6) - matrix / 4
    series = v @ sum(np.linalg.matrix_power(step, t) for t in range(4)) / 4.0
    assert truth.relative_error(found, series) < 1e-12


@pytest.mark.slow
def test_the_study_finds_what_its_page_says(tmp_path):
    """The quick version: what is exact or far from noise, not the fine figures."""
    import lissa_hyperparameters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, defaults = lissa_hyperparameters.main(tmp_path / "lissa", True, ["softmax"])
    assert (tmp_path / "lissa.csv").read_text().count("\n") == len(rows) + 1
    assert (tmp_path / "lissa-knobs.png").stat().st_size > 10_000
    depth = {r["depth"]: r for r in rows if r["study"] == "depth"}
    assert depth[max(depth)]["bias"] < 0.1 < depth[min(depth)]["bias"]
    scales = [r for r in rows if r["study"] == "scale"]
    assert all(r["diverged"] == 1 for r in scales if r["scale"] == 0.25)
    assert all(r["diverged"] == 0 for r in scales if r["scale"] >= 1)
    assert all(r["error"] < 1e-3 for r in defaults)
    assert all(r["pearson"] > 0.9 for r in defaults)
