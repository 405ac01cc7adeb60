"""Scores in a store: the numbers of the plain call, gone on with after a kill, refused when stale."""

import json
import signal
import subprocess
import sys
import types
import warnings

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import CG, Nystrom, StaleError
from keras_influence.errors import SolverError
from keras_influence.linalg.solvers import Solver
from keras_influence.questions import blocks, store_files
from keras_influence.questions.attempts import Attempt
from tests import truth
from tests.questions.models import example_gradients, gauss_newton, network

zarr = pytest.importorskip("zarr")

SIZE, N, N_TEST = 43, 20, 8
# Gone on with, a call makes its preconditioner again; without one it takes the same passes.
PLAIN = CG(tol=1e-10, preconditioner=None)
OPTIONS = {"damping": 0.1, "curvature": "gauss_newton", "method": PLAIN, "verbose": 0}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of three test examples, in chunks of 3 x 7 scores."""
    monkeypatch.setattr(blocks, "_MOST", 3)
    monkeypatch.setattr(store_files, "_CHUNK", 21)


@pytest.fixture
def train(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, 3, N)


@pytest.fixture
def test(rng):
    return rng.normal(size=(N_TEST, 4)), rng.integers(0, 3, N_TEST)


@pytest.fixture
def exact(train, test):
    """The scores, without the library."""
    model = network()
    matrix = gauss_newton(model, train[0]) + 0.1 * np.eye(SIZE)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    return g_test @ np.linalg.solve(matrix, g.T) / N


@pytest.fixture
def solves(monkeypatch):
    """How many right-hand sides each solve has had."""
    seen, solve = [], Solver.solve

    def watched(self, system, rows, **options):
        seen.append(len(rows))
        return solve(self, system, rows, **options)

    monkeypatch.setattr(Solver, "solve", watched)
    return seen


def cut_off(monkeypatch, call, solve=2, chunk=None):
    """Make a call that ends in a KeyboardInterrupt, in its third block."""
    asked = []

    def counted(function):
        def run(*arguments, **options):
            asked.append(1)
            if len(asked) > solve and chunk is None:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return run

    def broken(parts, width, original=store_files.in_chunks):
        for count, item in enumerate(original(parts, width)):
            if len(asked) > solve and count == chunk:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Attempt, "solve", counted(Attempt.solve))
        patch.setattr(store_files, "in_chunks", broken)
        call()


def files_in(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


# ---- what is written, and read


def test_a_store_has_the_scores_of_the_plain_call(train, test, exact, tmp_path):
    plain = ki.influence(network(), test, train, **OPTIONS)
    path = tmp_path / "scores.zarr"
    stored = ki.influence(network(), test, train, store=path, **OPTIONS)
    opened = ki.InfluenceScores.open(str(path))
    for scores in (stored, opened):
        assert truth.relative_error(np.asarray(scores), exact) < 1e-8
        assert truth.relative_error(np.asarray(scores), plain.values) < 1e-12
        for name in ("residual", "iterations", "converged"):
            found, expected = getattr(scores, name), getattr(plain, name)
            assert np.allclose(found, expected, rtol=1e-6, atol=0)
            assert found.dtype == expected.dtype
        for name in ("solver", "curvature", "damping", "passes", "details", "reason", "target",
                     "parameters", "n_test", "n_train"):  # fmt: skip
            assert getattr(scores, name) == getattr(plain, name)
    assert type(stored) is type(plain)


def test_what_a_store_can_do_by_parts(train, test, exact, tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    scores = ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)
    order = np.argsort(-exact, axis=1, kind="stable")
    assert scores.values.chunks == (3, 7)
    read, get = [], zarr.Array.__getitem__

    def watched(self, selection):
        part = get(self, selection)
        read.append(np.size(part))
        return part

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__getitem__", watched)
        assert (scores.top(4).indices == order[:, :4]).all()
        assert (scores.bottom(4).indices == order[:, :-5:-1]).all()
        assert "8 test x 20 training" in repr(scores)
        assert max(read) == 21
        figure = scores.plot(k=2, rows=[6, 1])
        assert max(read) == 21
    cells = figure.axes[0].tables[0].get_celld()
    assert cells[1, 0].get_text().get_text() == "6"
    assert cells[1, 1].get_text().get_text().startswith(f"{order[6, 0]}  {exact[6].max():+.2g}")
    assert truth.relative_error(np.asarray(scores, np.float32), exact) < 1e-6
    assert truth.relative_error(scores.values[5], exact[5]) < 1e-8
    assert len(scores) == scores.n_test == N_TEST
    assert truth.relative_error(scores.to_pandas().to_numpy(), exact) < 1e-8
    scores.save(tmp_path / "file")
    assert (ki.InfluenceScores.load(tmp_path / "file").values == np.asarray(scores)).all()


def test_any_reader_of_zarr_can_read_it(train, test, exact, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)
        group = zarr.open_group(str(tmp_path / "s"), mode="r")
        names = {name for name, _ in group.members()}
    assert names == {"values", "residual", "iterations", "converged"}
    assert truth.relative_error(group["values"][:], exact) < 1e-8
    assert group.attrs["keras_influence"]["about"]["damping"] == 0.1


def test_blocks_are_larger_where_a_solver_takes_less(train, test, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST", 1000)
    monkeypatch.setattr(blocks, "_MEMORY", 43 * ki.CG().row_bytes)
    model = network()
    for method, expected in ((ki.CG(), 1), (ki.EKFAC(), 5)):
        path = tmp_path / type(method).__name__
        ki.influence(model, test, train, store=path, **{**OPTIONS, "method": method})
        assert store_files.read_state(path)["block"] == expected


def test_a_store_of_one_block_in_float32(train, test, exact, tmp_path, monkeypatch):
    from tests.conftest import set_precision

    monkeypatch.setattr(blocks, "_MOST", 1000)
    weights = network().get_weights()
    set_precision("float32")
    model = network()
    model.set_weights(weights)
    options = {**OPTIONS, "method": "direct"}
    scores = ki.influence(model, test, train, store=tmp_path / "s", **options)
    assert scores.values.dtype == np.float32
    assert truth.relative_error(np.asarray(scores), exact) < 1e-4


# ---- cut off and gone on with


def test_a_finished_store_is_not_computed_again(train, test, solves, tmp_path):
    first = ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)
    solves.clear()
    again = ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)
    assert solves == []
    assert (np.asarray(again) == np.asarray(first)).all()


@pytest.mark.slow_cases("1", "0")
@pytest.mark.parametrize("chunk", [None, 0, 1, 2])
def test_what_is_there_is_not_computed_again(
    chunk, train, test, exact, solves, tmp_path, monkeypatch
):
    plain = ki.influence(network(), test, train, **OPTIONS)

    def call():
        return ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)

    cut_off(monkeypatch, call, chunk=chunk)
    with pytest.raises(ValueError, match=r"holds 6 of 8 test examples.*goes on there"):
        ki.InfluenceScores.open(tmp_path / "s")
    # The store knows its blocks.
    monkeypatch.setattr(blocks, "_MOST", 5)
    solves.clear()
    scores = call()
    assert solves == [2]
    assert truth.relative_error(np.asarray(scores), exact) < 1e-8
    assert scores.converged.all()
    assert scores.passes == plain.passes
    assert (scores.iterations == plain.iterations).all()


def test_a_block_that_is_half_there_is_not_trusted(train, test, exact, tmp_path, monkeypatch):
    def call():
        return ki.influence(network(), test, train, store=tmp_path / "s", **OPTIONS)

    cut_off(monkeypatch, call, chunk=2)
    left = tmp_path / "s" / "values" / "c" / "2"
    assert {path.name for path in left.iterdir()} == {"0", "1"}
    for path in left.iterdir():
        path.write_bytes(path.read_bytes()[:5])
    (tmp_path / "s" / "residual" / "c" / "2").write_bytes(b"half")
    (tmp_path / "s" / "zarr.json.0123abcd.partial").write_bytes(b"{")
    scores = call()
    assert truth.relative_error(np.asarray(scores), exact) < 1e-8
    assert scores.residual.max() < 1e-9
    assert not list(tmp_path.rglob("*.partial"))


CHILD = """
import os, sys, time
import keras, numpy as np
from tests.conftest import set_precision
set_precision("float64")
import keras_influence as ki
from keras_influence.questions import blocks, store_files

folder, moment = sys.argv[1:]
blocks._MOST, store_files._CHUNK = 3, 21
done, in_chunks, replace = [], store_files.in_chunks, os.replace

def wait():
    print("now", flush=True)
    time.sleep(100)

def slow_chunks(parts, width):
    for count, item in enumerate(in_chunks(parts, width)):
        if moment == "chunk" and len(done) == 2 and count == 1:
            wait()
        yield item

def slow_replace(source, path):
    if str(path).endswith("zarr.json") and "partial" not in str(path.parent):
        done.append(1)
        # The first time it is the plan that is written.
        if moment == "state" and len(done) == 4:
            wait()
    replace(source, path)
    if moment == "after" and len(done) == 3:
        wait()

store_files.in_chunks, os.replace = slow_chunks, slow_replace
data = np.load(f"{folder}/data.npz")
model = keras.models.load_model(f"{folder}/model.keras")
test, train = (data["x_test"], data["y_test"]), (data["x"], data["y"])
if moment == "after":
    import dask.array as da
    train = tuple(da.from_array(t, chunks=(7, *t.shape[1:])) for t in train)
method = ki.CG(tol=1e-10, preconditioner=None)
options = dict(damping=0.1, curvature="gauss_newton", method=method, verbose=0)
ki.influence(model, test, train, store=f"{folder}/scores.zarr", **options)
"""


@pytest.mark.slow_cases("state-6", "after-6")
@pytest.mark.parametrize(("moment", "done"), [("chunk", 3), ("state", 6), ("after", 6)])
def test_killed(moment, done, train, test, exact, solves, tmp_path):
    """Within a block's chunks; before its attributes are renamed into place; and right after, a client of Dask's.

    As long as it lives, no other process may write to its store.
    """
    if moment == "after":
        pytest.importorskip("dask.array")
    model = network()
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=train[0], y=train[1], x_test=test[0], y_test=test[1])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), moment], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "now\n"
        before = files_in(tmp_path)
        with pytest.raises(RuntimeError, match="`store` is being filled by another call"):
            ki.influence(model, test, train, store=tmp_path / "scores.zarr", **OPTIONS)
        assert solves == [] and files_in(tmp_path) == before
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    state = json.loads((tmp_path / "scores.zarr" / "zarr.json").read_text())["attributes"]
    assert state["keras_influence"]["done"] == done
    scores = ki.influence(model, test, train, store=tmp_path / "scores.zarr", **OPTIONS)
    assert sum(solves) == N_TEST - done
    plain = ki.influence(model, test, train, **OPTIONS)
    assert truth.relative_error(np.asarray(scores), exact) < 1e-8
    assert truth.relative_error(np.asarray(scores), plain.values) < 1e-9
    assert (scores.iterations == plain.iterations).all()
    assert scores.passes == plain.passes


def test_of_two_calls_that_make_a_store_at_once_both_find_it(tmp_path):
    state = {"block": 3, "done": 0}
    for mark in ("first", "second"):
        store_files.create(tmp_path / "s", (8, 20), "float32", {**state, "mark": mark})
    assert store_files.read_state(tmp_path / "s")["mark"] == "first"
    arrays = store_files.open_arrays(tmp_path / "s")
    assert np.isnan(arrays["values"][:]).all() and np.isnan(arrays["residual"][:]).all()
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


# ---- plans


@pytest.mark.slow
def test_what_was_chosen_automatically_is_kept(train, test, tmp_path, monkeypatch):
    options = {"damping": "auto", "method": "auto", "verbose": 0}

    def call():
        return ki.influence(network(), test, train, store=tmp_path / "s", **options)

    cut_off(monkeypatch, call)

    def refuse(*_, **__):
        raise AssertionError("decided again")

    with monkeypatch.context() as patch:
        patch.setattr("keras_influence.questions.case.plans_for", refuse)
        scores = call()
    plain = ki.influence(network(), test, train, **options)
    assert scores.damping == plain.damping
    assert scores.reason == plain.reason
    assert truth.relative_error(np.asarray(scores), plain.values) < 1e-8


def test_scores_are_all_by_one_plan(train, test, tmp_path, monkeypatch):
    """Where a later block makes the first plan fail, its blocks are written anew by the next."""
    model = network()
    hessian = truth.finite_difference_hessian(model, *train, 1e-3)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    expected = g_test @ np.linalg.solve(hessian + 3 * np.eye(SIZE), g.T) / N
    options = {"damping": 3.0, "method": CG(tol=1e-10), "verbose": 0}
    solve, asked = Attempt.solve, []

    def failing(self, rows, **rest):
        asked.append(self.plan.curvature)
        if asked == ["gauss_newton"] * 2:
            raise SolverError("block 2 has no answer")
        if asked[2:] == ["hessian"] * 2:
            raise KeyboardInterrupt
        return solve(self, rows, **rest)

    monkeypatch.setattr(Attempt, "solve", failing)
    with (
        pytest.warns(ki.CurvatureWarning, match="block 2 has no answer"),
        pytest.raises(KeyboardInterrupt),
    ):
        ki.influence(model, test, train, store=tmp_path / "s", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ki.influence(model, test, train, store=tmp_path / "s", **options)
    assert asked == ["gauss_newton"] * 2 + ["hessian"] * 4
    assert scores.curvature == "hessian"
    assert "because block 2 has no answer" in scores.reason
    assert truth.relative_error(np.asarray(scores), expected) < 1e-6


def test_an_explainer_fills_a_store_with_its_factor(train, test, exact, tmp_path, monkeypatch):
    model = network()
    options = {**OPTIONS, "method": Nystrom(SIZE, tol=10.0)}
    explainer = ki.Explainer(model, train, **options)
    explainer.save(tmp_path / "factor")
    loaded = ki.Explainer.load(model, train, tmp_path / "factor")

    def refuse(*_):
        raise AssertionError("factorised again")

    monkeypatch.setattr(Nystrom, "factorise", refuse)
    cut_off(monkeypatch, lambda: explainer.influence(test, store=tmp_path / "s"))
    scores = loaded.influence(test, store=tmp_path / "s")
    assert scores.passes == 3  # The certificates alone.
    assert truth.relative_error(np.asarray(scores), exact) < 1e-6
    with pytest.raises(StaleError, match="`method`, `damping` or `curvature` has changed"):
        ki.influence(model, test, train, store=tmp_path / "s", **options)


def test_a_model_of_its_own_class(train, test, exact, tmp_path):
    scores = network(cls=ki.InfluenceModel).influence(test, train, store=tmp_path / "s", **OPTIONS)
    assert truth.relative_error(np.asarray(scores), exact) < 1e-8


# ---- refused


def _other_weights(model, test, train):
    model.layers[-1].bias.assign_add([0.1, 0, 0])
    return model, test, train, {}


def _other_loss(model, test, train):
    model.compile("sgd", lambda t, p: 2 * keras.losses.sparse_categorical_crossentropy(t, p))
    return model, test, train, {}


CHANGES = [
    (_other_weights, "the weights have changed"),
    (_other_loss, "the loss or the architecture has changed"),
    (lambda m, test, train: (m, test, (train[0], train[1][::-1]), {}), "training data have changed"),
    (lambda m, test, train: (m, (test[0][::-1], test[1]), train, {}), "test data have changed"),
    (lambda m, test, train: (m, (test[0][:7], test[1][:7]), train, {}), "test data have changed"),
    (lambda *a: (*a, {"target": lambda x, y, p: p[:, 0]}), "`target` has changed"),
    (lambda *a: (*a, {"variables": a[0].get_layer("head")}), "`variables` has changed"),
    (lambda *a: (*a, {"damping": 0.2}), "`damping` or `curvature` has changed"),
    (lambda *a: (*a, {"damping": "auto"}), "`damping` or `curvature` has changed"),
    (lambda *a: (*a, {"method": CG(tol=1e-9)}), "`method`, `damping`"),
    (lambda *a: (*a, {"method": "auto"}), "`method`, `damping`"),
    (lambda *a: (*a, {"curvature": "auto"}), "`curvature` has changed"),
    (lambda *a: (*a, {"class_weight": {0: 2.0}}), "training data have changed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_a_store_of_something_else_is_refused(change, words, train, test, tmp_path):
    model = network()
    ki.influence(model, test, train, store=tmp_path / "s", **OPTIONS)
    before = files_in(tmp_path)
    model, test, train, options = change(model, test, train)
    with pytest.raises(StaleError, match=rf"store of scores in .*{words}.*another `store`"):
        ki.influence(model, test, train, store=tmp_path / "s", **{**OPTIONS, **options})
    assert files_in(tmp_path) == before


class _Output:
    """A target that is an object, with a class to look at."""

    def __init__(self, k):
        self.k = k

    def __call__(self, x, y, y_pred):
        return y_pred[:, self.k]


# Attributes of such an object are not looked at, but what the target gives is.
_CHOSEN = types.SimpleNamespace(k=0)


@pytest.mark.parametrize("kind", ["global", "attribute", "whole set"])
def test_what_a_target_reads_besides_may_not_change(kind, train, test, tmp_path, monkeypatch):
    """A function whose source is the same."""

    def chosen(x, y, y_pred):
        return y_pred[:, _CHOSEN.k]

    def target():
        if kind == "attribute":
            return _Output(_CHOSEN.k)
        whole = ki.WholeSet(lambda x, y, y_pred: keras.ops.sum(chosen(x, y, y_pred)))
        return whole if kind == "whole set" else chosen

    def call():
        about = {"store": tmp_path / "s", "target": target(), **OPTIONS}
        return ki.influence(network(), test, train, **about)

    first = np.asarray(call())
    assert (np.asarray(call()) == first).all()
    monkeypatch.setattr(_CHOSEN, "k", 1)
    change = "`target` has changed" if kind == "attribute" else "what `target` gives has changed"
    with pytest.raises(StaleError, match=change):
        call()


def test_the_size_of_batches_may_change(train, test, tmp_path, monkeypatch):
    def call(size):
        return ki.influence(
            network(), test, train, store=tmp_path / "s", batch_size=size, **OPTIONS
        )

    cut_off(monkeypatch, lambda: call(4))
    assert call(9).converged.all()


@pytest.mark.parametrize("made", ["file", "folder", "group"])
def test_what_is_no_store_is_left_alone(made, train, test, tmp_path):
    path = tmp_path / "s"
    if made == "file":
        path.write_text("{}")
    elif made == "folder":
        path.mkdir()
    else:
        zarr.open_group(str(path), mode="w")
    with pytest.raises(ValueError, match="`store` should be a folder that does not exist yet, or"):
        ki.influence(network(), test, train, store=path, **OPTIONS)
    with pytest.raises(ValueError, match=r"`path` should be a folder that influence\(..., store="):
        ki.InfluenceScores.open(path)


def test_bad_paths(train, test, tmp_path):
    with pytest.raises(TypeError, match="`store` should be the path of a folder. Received: 3"):
        ki.influence(network(), test, train, store=3)
    with pytest.raises(FileNotFoundError, match="`store` should be in a folder that exists"):
        ki.influence(network(), test, train, store=tmp_path / "none" / "s")
    with pytest.raises(FileNotFoundError, match="`path` should be a folder of scores"):
        ki.InfluenceScores.open(tmp_path / "none")


def test_without_zarr_the_way_out_is_said(train, test, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    for call in (
        lambda: ki.influence(network(), test, train, store=tmp_path / "s"),
        lambda: ki.InfluenceScores.open(tmp_path / "s"),
    ):
        with pytest.raises(ImportError, match=r'pip install "keras-influence\[store\]"'):
            call()
    assert not list(tmp_path.iterdir())
