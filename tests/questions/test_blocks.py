"""Questions in blocks of examples: bounded work at once, the same answers, one plan, one warning."""

import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence import CG, Nystrom
from keras_influence.engine.layers.scoring import Scorer
from keras_influence.errors import SolverError
from keras_influence.linalg.solvers import Solver
from keras_influence.questions import blocks
from keras_influence.questions.attempts import Attempt
from tests import truth
from tests.questions.models import example_gradients, gauss_newton, network

SIZE, N, N_TEST = 43, 20, 8
# Batches of 4 end inside blocks, and blocks inside batches.
OPTIONS = {"damping": 0.1, "curvature": "gauss_newton", "method": CG(tol=1e-10), "batch_size": 4}


@pytest.fixture
def train(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, 3, N)


@pytest.fixture
def test(rng):
    return rng.normal(size=(N_TEST, 4)), rng.integers(0, 3, N_TEST)


@pytest.fixture
def solves(monkeypatch):
    """Blocks of three; how many right-hand sides each solve had, and gradients each batch."""
    seen = {"solves": [], "gradients": []}
    solve, gradients = Solver.solve, Scorer.gradients

    def watched_solve(self, system, rows, **options):
        seen["solves"].append(len(rows))
        return solve(self, system, rows, **options)

    def watched_gradients(self, batch):
        rows = gradients(self, batch)
        seen["gradients"].append(len(rows))
        return rows

    monkeypatch.setattr(blocks, "_MOST", 3)
    monkeypatch.setattr(Solver, "solve", watched_solve)
    monkeypatch.setattr(Scorer, "gradients", watched_gradients)
    return seen


def exact(model, train, test):
    """H + λI, and the gradients of training and test examples, without the library."""
    matrix = gauss_newton(model, train[0]) + 0.1 * np.eye(SIZE)
    return matrix, example_gradients(model, *train), example_gradients(model, *test)


def test_as_many_as_fit_into_memory(monkeypatch):
    assert [blocks.block_size(p) for p in (43, 10**4, 10**6, 10**7, 10**9)] == [
        1000,
        1000,
        10,
        1,
        1,
    ]
    assert blocks.block_size(10**7, ki.EKFAC().row_bytes) == 5
    monkeypatch.setattr(blocks, "_MEMORY", 16e9)
    assert blocks.block_size(10**6) == 160


def test_influence(train, test, solves):
    model = network()
    matrix, g, g_test = exact(model, train, test)
    scores = ki.influence(model, test, train, **OPTIONS)
    assert truth.relative_error(scores.values, g_test @ np.linalg.solve(matrix, g.T) / N) < 1e-8
    assert solves == {"solves": [3, 3, 2], "gradients": [3, 1, 2, 2]}
    assert scores.converged.all()
    assert (scores.residual > 0).all()
    assert (scores.iterations > 0).all()
    assert scores.passes > scores.iterations.max()


def test_blocks_are_larger_where_a_solver_takes_less(train, test, solves, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST", 1000)
    monkeypatch.setattr(blocks, "_MEMORY", SIZE * CG().row_bytes)
    model = network()
    for method, expected in ((CG(tol=1e-10), [1] * 8), (ki.EKFAC(), [5, 3])):
        solves["solves"].clear()
        ki.influence(model, test, train, **{**OPTIONS, "method": method})
        assert solves["solves"] == expected


def test_gradients_are_let_go_of_before_scores(train, test, monkeypatch):
    """Of large networks they are as large as all that scores take."""
    held, alive = [], []
    solve, scores = Solver.solve, Scorer.scores

    def watched_solve(self, system, rows, **options):
        held.append(weakref.ref(rows))
        return solve(self, system, rows, **options)

    def watched_scores(self, batch):
        alive.append(held[-1]() is not None)
        return scores(self, batch)

    monkeypatch.setattr(Solver, "solve", watched_solve)
    monkeypatch.setattr(Scorer, "scores", watched_scores)
    ki.influence(network(), test, train, **OPTIONS)
    assert len(held) == 1 and alive and not any(alive)


def test_influence_on_a_dataset(train, test, solves):
    model = network()
    matrix, g, g_test = exact(model, train, test)
    data = tf.data.Dataset.from_tensor_slices(test).batch(5)
    scores = ki.influence(model, data, train, **OPTIONS)
    assert truth.relative_error(scores.values, g_test @ np.linalg.solve(matrix, g.T) / N) < 1e-8
    assert solves == {"solves": [3, 3, 2], "gradients": [3, 2, 1, 2]}


def test_self_influence(train, test, solves):
    model = network()
    matrix, g, _ = exact(model, train, test)
    own = np.einsum("ni,in->n", g, np.linalg.solve(matrix, g.T))
    assert truth.relative_error(ki.self_influence(model, train, **OPTIONS), own) < 1e-8
    some = ki.self_influence(model, train, indices=[9, 2, 7, 7], **OPTIONS)
    assert truth.relative_error(some, own[[9, 2, 7, 7]]) < 1e-8
    assert max(solves["solves"]) == max(solves["gradients"]) == 3


@pytest.mark.parametrize("order", [1, 2])
def test_group_influence(order, train, test, solves):
    model = network()
    matrix, g, g_test = exact(model, train, test)
    groups = [[0, 1], [2], [5, 9, 11], [19], [3, 4]]
    columns = []
    for group in groups:
        part = np.array(group)
        own = gauss_newton(model, train[0][part]) * len(part) / N if order == 2 else 0
        columns.append(g_test @ np.linalg.solve(matrix - own, g[part].sum(0) / N))
    found = ki.group_influence(model, test, train, groups, order=order, **OPTIONS)
    assert truth.relative_error(found, np.array(columns).T) < 1e-8
    assert solves["solves"] == ([3, 2] if order == 1 else [1] * 5)
    assert max(solves["gradients"]) == 3


def test_input_influence(train, test, solves):
    """A block's answers are those of a call for its examples alone, which has a test of its own."""
    model = network()
    found = ki.input_influence(model, test, train, indices=[4, 0, 7], **OPTIONS)
    assert solves["solves"] == [3, 3, 2]
    for part in (slice(0, 2), slice(2, 4), slice(6, 8)):
        alone = ki.input_influence(
            model, (test[0][part], test[1][part]), train, indices=[4, 0, 7], **OPTIONS
        )
        assert truth.relative_error(found[part], alone) < 1e-8


def test_tracin(train, test, solves):
    model, tracin = network(), ki.TracIn()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    start = example_gradients(model, *test) @ example_gradients(model, *train).T
    model.fit(*train, batch_size=N, epochs=1, verbose=0, callbacks=[tracin])
    end = example_gradients(model, *test) @ example_gradients(model, *train).T
    scores = tracin.influence(model, test, train)
    # The trapezoid of one step of 0.1; Keras keeps the rate in float32.
    assert truth.relative_error(scores.values, 0.05 * (start + end) / N) < 1e-6
    assert max(solves["gradients"]) == 3


# ---- one plan, one factor, one warning


def test_what_is_computed_once_serves_all_blocks(train, test, solves, monkeypatch):
    made, factorise = [], Nystrom.factorise

    def counted(self, *arguments):
        made.append(1)
        return factorise(self, *arguments)

    monkeypatch.setattr(Nystrom, "factorise", counted)
    ki.influence(network(), test, train, **{**OPTIONS, "method": Nystrom(20, tol=10.0)})
    assert (len(made), len(solves["solves"])) == (1, 3)


def test_auto_counts_all_right_hand_sides(train, test, solves):
    scores = ki.influence(network(), test, train, damping="auto")
    assert f"{N_TEST} right-hand sides" in scores.reason


def test_a_plan_that_fails_in_a_later_block_gives_none_of_the_answers(
    train, test, solves, monkeypatch
):
    model = network()
    _, g, g_test = exact(model, train, test)
    hessian = truth.finite_difference_hessian(model, *train, 1e-3)
    expected = g_test @ np.linalg.solve(hessian + 3 * np.eye(SIZE), g.T) / N
    solve, asked = Attempt.solve, []

    def failing(self, rows, **options):
        asked.append(self.plan.curvature)
        if asked == ["gauss_newton"] * 2:
            raise SolverError("block 2 has no answer")
        return solve(self, rows, **options)

    monkeypatch.setattr(Attempt, "solve", failing)
    options = {"damping": 3.0, "method": CG(tol=1e-10), "batch_size": 4}
    with pytest.warns(ki.CurvatureWarning, match="block 2 has no answer"):
        scores = ki.influence(model, test, train, **options)
    assert asked == ["gauss_newton"] * 2 + ["hessian"] * 3
    assert scores.curvature == "hessian"
    assert truth.relative_error(scores.values, expected) < 1e-6
    # Nothing of what the first plan took is counted; what stands in for it is looked at by a step.
    again = ki.influence(model, test, train, curvature="hessian", **options)
    assert scores.passes == again.passes + 1


def test_convergence_is_warned_about_once_for_all(train, test, solves):
    options = {**OPTIONS, "method": CG(tol=1e-10, max_iter=1)}
    with pytest.warns(ki.ConvergenceWarning) as caught:
        scores = ki.influence(network(), test, train, **options)
    (warning,) = [w for w in caught if w.category is ki.ConvergenceWarning]
    assert f"{scores.residual.max():.2g}, not 1e-10, for 8 of 8 right-hand" in str(warning.message)
    assert "Raise `max_iter`" in str(warning.message)
    assert warning.filename == __file__
    assert not scores.converged.any()


def test_what_converged_is_not_warned_about(train, test, solves):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ki.influence(network(), test, train, **OPTIONS)


# ---- what is shown


def test_several_blocks_have_one_bar(train, test, solves, capsys):
    ki.influence(network(), test, train, verbose=1, **OPTIONS)
    shown = capsys.readouterr().out
    assert shown.startswith("Influence on 8 test examples")
    assert shown.count("8/8") == 1
    assert "residual:" in shown
    assert "Solve for" not in shown


def test_one_block_has_a_bar_for_each_stage(train, test, capsys):
    ki.influence(network(), test, train, verbose=1, **OPTIONS)
    shown = capsys.readouterr().out
    for title in ("Gradients of 8 examples", "Solve for 8 right-hand", "Scores of 20 training"):
        assert title in shown


def test_a_bad_example_is_named_by_its_position(train, test, solves):
    """The derivative of the root is infinite where the output is 0."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.compile("sgd", lambda y, z: keras.ops.mean((y - z) ** 2 + keras.ops.sqrt(z**2), -1))
    x = np.where(np.arange(N_TEST)[:, None] == 6, 0, test[0])
    with pytest.raises(ValueError, match="example 6 of `test` has a gradient"):
        ki.influence(model, (x, x[:, :1]), (train[0], train[0][:, :1]), **OPTIONS)
