"""Every question on Dask arrays, against closed forms: softmax regression with L2, in float64."""

import pathlib

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.truth import L2

da = pytest.importorskip("dask.array")

N, DAMPING = 60, 0.1
QUIET = {"damping": DAMPING, "verbose": 0}


@pytest.fixture
def problem(rng):
    """A model at random weights, Dask arrays in unequal chunks, and the closed forms."""
    x, y = rng.normal(size=(N, 4)), rng.integers(0, 3, N)
    model = truth.softmax_model(4, 3, L2)
    model.layers[1].bias.assign(rng.normal(size=3))
    train = da.from_array(x, chunks=((7, 30, 1, 22), 4)), da.from_array(y, chunks=20)
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    theta = truth.get_flat(model)
    gradients = closed.example_gradients(theta)
    inverse = np.linalg.inv(closed.hessian(theta) + DAMPING * np.eye(15))
    return model, train, closed, theta, gradients, inverse


def test_scores_and_what_follows_from_them(problem):
    model, train, _, _, g, inverse = problem
    test = tuple(part[5:9] for part in train)
    expected = g[5:9] @ inverse @ g.T / N
    scores = ki.influence(model, test, train, **QUIET)
    assert truth.relative_error(scores.values, expected) < 1e-10
    top = ki.top_influence(model, test, train, 3, **QUIET)
    assert np.array_equal(top.proponents.indices, np.argsort(-expected, kind="stable")[:, :3])
    groups = ki.group_influence(model, test, train, [[0, 59], [8]], **QUIET)
    assert (
        truth.relative_error(groups, np.stack([expected[:, [0, 59]].sum(1), expected[:, 8]], 1))
        < 1e-10
    )
    own = ki.self_influence(model, train, indices=[40, 3, 3], **QUIET)
    assert truth.relative_error(own, np.einsum("ip,pq,iq->i", g, inverse, g)[[40, 3, 3]]) < 1e-10


def test_a_group_taken_out_of_the_curvature(problem):
    model, train, closed, theta, g, _ = problem
    group = [2, 7, 36, 37, 38, 59]
    x, y = (np.asarray(part)[group] for part in train)
    part = truth.SoftmaxRegression(x, y, 3, 0.0)
    rest = closed.hessian(theta) - part.hessian(theta) * len(group) / N
    expected = np.linalg.solve(rest + DAMPING * np.eye(15), g[group].sum(0) / N)
    found = ki.parameter_influence(model, group, train, order=2, **QUIET)
    assert truth.relative_error(np.concatenate([np.ravel(a) for a in found]), expected) < 1e-8


def test_products_and_spectrum(problem, rng):
    model, train, closed, theta, _, _ = problem
    vectors, h = rng.normal(size=(15, 3)), closed.hessian(theta)
    assert truth.relative_error(ki.hvp(model, vectors, train), h @ vectors) < 1e-13
    values = ki.hessian_eigenvalues(model, train, 2, verbose=0)
    assert truth.relative_error(np.sort(np.ravel(values)), np.linalg.eigvalsh(h)[-2:]) < 1e-6
    assert truth.relative_error(ki.losses(model, train), closed.losses(theta)) < 1e-13


@pytest.mark.slow_cases("LiSSA")
@pytest.mark.parametrize(
    "method",
    [
        ki.Direct(),
        ki.CG(tol=1e-8),
        ki.LiSSA(batch_size=20, tol=1e-8, max_passes=2000),
        ki.Nystrom(15),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers(problem, method):
    model, train, _, _, g, inverse = problem
    found = ki.inverse_hvp(model, g[:2].T, train, method=method, **QUIET)
    assert truth.relative_error(found, inverse @ g[:2].T) < 1e-6


def test_input_gradients(problem):
    model, train, _, _, g, inverse = problem
    found = ki.input_influence(model, tuple(p[:2] for p in train), train, indices=[50, 4], **QUIET)
    x, y = (np.array(part) for part in train)
    step = 1e-5
    for place, i in enumerate([50, 4]):
        moved = []
        for sign in (1, -1):
            shifted = x.copy()
            shifted[i, 2] += sign * step
            other = truth.SoftmaxRegression(shifted, y, 3, L2)
            moved.append(g[:2] @ inverse @ other.example_gradients(truth.get_flat(model))[i] / N)
        assert np.allclose(
            np.asarray(found)[:, place, 2], (moved[0] - moved[1]) / (2 * step), atol=1e-8
        )


def test_float32_and_a_network(rng):
    """Products of an MLP against differences of Keras's own gradient on the whole arrays."""
    x, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    v = rng.normal(size=model.count_params())
    found = ki.hvp(model, v, (da.from_array(x, chunks=(9, 5)), y))
    assert truth.relative_error(found, truth.finite_difference_hvp(model, x, y, v)) < 1e-7


def test_along_the_checkpoints_of_training(problem):
    model, train, closed, _, _, _ = problem
    x, y = (np.asarray(part) for part in train)
    tracin = ki.TracIn()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, batch_size=30, verbose=0, callbacks=[tracin])
    found = tracin.influence(model, tuple(p[:3] for p in train), train, verbose=0).values
    theta = [np.concatenate([a.ravel() for a in c.arrays()]) for c in tracin.checkpoints]
    g = [closed.example_gradients(t) for t in theta]
    # Four steps of 0.1 in two epochs: half of the first and last state, and all of the middle one.
    expected = sum(w * a[:3] @ a.T for w, a in zip((0.1, 0.2, 0.1), g)) / N
    assert len(g) == 3 and truth.relative_error(found, expected) < 1e-7


def test_an_explainer_and_a_store(problem, tmp_path):
    model, train, _, _, g, inverse = problem
    explainer = ki.Explainer(model, train, method="direct", **QUIET)
    expected = g[:4] @ inverse @ g.T / N
    test = tuple(part[:4] for part in train)
    assert truth.relative_error(explainer.influence(test).values, expected) < 1e-10
    explainer.save(tmp_path / "explainer.npz")
    # The same data in other chunks are the same data.
    other = tuple(part.rechunk(13) if part.ndim == 1 else part.rechunk((13, 4)) for part in train)
    loaded = ki.Explainer.load(model, other, tmp_path / "explainer.npz", verbose=0)
    assert truth.relative_error(loaded.influence(test).values, expected) < 1e-10
    pytest.importorskip("zarr")
    stored = ki.influence(model, test, train, store=tmp_path / "scores.zarr", **QUIET)
    assert truth.relative_error(stored.values[:], expected) < 1e-10


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_product_and_scores_hold_one_chunk_at_a_time():
    """160 MB of data in chunks of 8 MB; the scores of two test examples for all of them."""
    chunk, count, width = 10_000, 20, 100

    def made(block_info=None):
        rng = np.random.default_rng(block_info[None]["chunk-location"][0])
        return rng.random((chunk, width)) - 0.5

    def labels(block_info=None):
        return np.arange(chunk) % 2

    def data(count):
        chunks = (chunk,) * count
        x = da.map_blocks(made, chunks=(chunks, (width,)), dtype=float)
        return x, da.map_blocks(labels, chunks=(chunks,), dtype=int)

    model = truth.softmax_model(width, 2, L2)
    test = tuple(np.asarray(part[:2]) for part in data(1))
    options = {"method": ki.CG(tol=1e-2), "curvature": "gauss_newton", **QUIET}
    ki.influence(model, test, data(2), **options)  # What is there once.
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    scores = ki.influence(model, test, data(count), **options)
    ki.hvp(model, np.ones(2 * width + 2), data(count))
    assert scores.values.shape == (2, chunk * count)
    # 3 MB of them are the scores.
    assert resident("VmHWM") - before < 87


def resident(name):
    """Megabytes of this process: now (VmRSS), or the most since they were last cleared (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))
