"""The strongest examples, against a stable sort of scores that NumPy computes whole."""

import numpy as np
import pytest

import keras_influence as ki
from keras_influence.questions import blocks
from keras_influence.questions.ranking import Strongest
from tests import truth
from tests.questions.models import example_gradients, gauss_newton, network

N, N_TEST = 30, 5
OPTIONS = {"damping": 0.1, "curvature": "gauss_newton", "method": "direct", "batch_size": 7}


def ranked(values, k, sign):
    """Stable: of equal ones the first."""
    order = np.argsort(-sign * values, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(values, order, 1)


@pytest.fixture
def data(rng):
    train = rng.normal(size=(N, 4)), rng.integers(0, 3, N)
    return (rng.normal(size=(N_TEST, 4)), rng.integers(0, 3, N_TEST)), train


def exact(model, test, train):
    matrix = gauss_newton(model, train[0]) + 0.1 * np.eye(43)
    g, g_test = example_gradients(model, *train), example_gradients(model, *test)
    return g_test @ np.linalg.solve(matrix, g.T) / N


@pytest.mark.parametrize("most", [2, 1000])
@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_the_strongest_of_all(k, most, data, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST", most)
    model, (test, train) = network(cls=ki.InfluenceModel), data
    values = exact(model, test, train)
    explainer = model.explainer(train, **OPTIONS)
    for found in (model.top_influence(test, train, k, **OPTIONS), explainer.top_influence(test, k)):
        for ranking, sign in ((found.proponents, 1), (found.opponents, -1)):
            indices, strongest = ranked(values, k, sign)
            assert (ranking.indices == indices).all()
            assert truth.relative_error(ranking.values, strongest) < 1e-9
        assert found.n_train == N
        assert found.n_test == N_TEST
        assert found.converged.all()
        assert found.residual.max() < 1e-9
        assert found.curvature == "gauss_newton"
        assert found.solver["class_name"] == "Direct"


def test_of_equal_examples_the_first_is_first(data):
    """Each training example three times over: equal scores, in batches that part them."""
    model, (test, (x, y)) = network(), data
    train = (np.tile(x[:10], (3, 1)), np.tile(y[:10], 3))
    found = ki.top_influence(model, test, train, 5, **OPTIONS)
    scores = ki.influence(model, test, train, **OPTIONS)
    for ranking, whole, sign in (
        (found.proponents, scores.top(5), 1),
        (found.opponents, scores.bottom(5), -1),
    ):
        values = exact(model, test, train)
        # Equal in truth, however they are rounded in batches of different sizes.
        first = np.argsort(-sign * values[:, :10], axis=1, kind="stable")
        expected = np.stack([first[:, 0], first[:, 0] + 10, first[:, 0] + 20], 1)
        assert (np.sort(ranking.indices[:, :3] % 10, 1) == first[:, :1]).all()
        assert (np.sort(ranking.indices[:, :3], 1) == expected).all()
        assert (ranking.indices == whole.indices).all()
        assert (ranking.values == whole.values).all()


@pytest.mark.parametrize("proponents", [True, False])
def test_ties_within_and_between_parts(proponents, rng):
    values = rng.integers(-2, 3, (20, 50)).astype(float)
    strongest = Strongest(12, proponents)
    for start in range(0, 50, 9):
        strongest.add(values[:, start : start + 9])
    indices, expected = ranked(values, 12, 1 if proponents else -1)
    assert (strongest.ranking.indices == indices).all()
    assert (strongest.ranking.values == expected).all()


def test_a_target_of_ones_own(data):
    test, train = data
    model = truth.softmax_model(4, 3, truth.L2)
    target = lambda x, y, y_pred: y_pred[:, 1]
    found = ki.top_influence(model, test, train, 4, target=target, **OPTIONS)
    p = model(test[0]).numpy()
    slopes = p[:, 1:2] * (np.eye(3)[1] - p)
    g_test = np.einsum("nf,nc->nfc", np.c_[test[0], np.ones(N_TEST)], slopes).reshape(N_TEST, 15)
    closed = truth.SoftmaxRegression(*train, 3, truth.L2)
    theta = truth.get_flat(model)
    matrix = closed.hessian(theta) + 0.1 * np.eye(15)
    values = g_test @ np.linalg.solve(matrix, closed.example_gradients(theta).T) / N
    assert (found.proponents.indices == ranked(values, 4, 1)[0]).all()
    assert found.target == "target"
    assert "predicted change of target" in repr(found)


def test_all_scores_are_never_held(data, monkeypatch):
    test, train = data
    shapes, add = [], Strongest.add

    def watched(self, part):
        shapes.append(part.shape)
        add(self, part)

    monkeypatch.setattr(Strongest, "add", watched)
    monkeypatch.setattr(blocks, "_MOST", 2)
    ki.top_influence(network(), test, train, 3, **OPTIONS)
    assert max(rows for rows, _ in shapes) == 2
    assert max(columns for _, columns in shapes) == 7


def test_repr_save_and_load(data, tmp_path):
    test, train = data
    found = ki.top_influence(network(), test, train, 3, **OPTIONS)
    for words in ("3 of 30 training examples for each of 5", "proponents", "opponents", "Direct",
                  "units of the loss", f"{found.proponents.values[:, 0].max():+.3g}",
                  f"{found.opponents.values[:, 0].min():+.3g}", "5 of 5 solves"):  # fmt: skip
        assert words in repr(found)
    found.save(tmp_path / "top")
    loaded = ki.TopInfluence.load(tmp_path / "top")
    assert repr(loaded) == repr(found)
    for side in ("proponents", "opponents"):
        one, other = getattr(loaded, side), getattr(found, side)
        assert (one.indices == other.indices).all()
        assert (one.values == other.values).all()
    assert (loaded.iterations == found.iterations).all()
    assert loaded.parameters == found.parameters
    with pytest.raises(ValueError, match=r"written by TopInfluence.save"):
        np.savez(tmp_path / "other.npz", a=np.zeros(2))
        ki.TopInfluence.load(tmp_path / "other.npz")


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_bad_k_is_refused(k, error, data):
    with pytest.raises(error, match="`k` should be an integer >= 1"):
        ki.top_influence(network(), *data, k)
