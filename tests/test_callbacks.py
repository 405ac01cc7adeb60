"""InfluenceCallback, and the progress bars."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(20, 4)), rng.integers(0, 3, 20)


def fit(data, *callbacks, epochs=5):
    keras.utils.set_random_seed(2)
    model = truth.softmax_model(4, 3, L2)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(*data, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model, history.history


def test_computes_at_the_end(data):
    callback = ki.InfluenceCallback(data, data, damping=0.1)
    model, _ = fit(data, callback)
    assert list(callback.history) == [5]
    closed = truth.SoftmaxRegression(*data, 3, L2)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta)
    expected = g @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 20
    assert truth.relative_error(callback.scores.values, expected) < 1e-6


def test_computes_every_few_epochs_and_writes(data, tmp_path):
    callback = ki.InfluenceCallback(data, data, every=2, folder=tmp_path / "scores", damping=0.1)
    fit(data, callback)
    assert list(callback.history) == [2, 4, 5]
    names = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert names == ["epoch_0002.npz", "epoch_0004.npz", "epoch_0005.npz"]
    loaded = ki.InfluenceScores.load(tmp_path / "scores" / "epoch_0004.npz")
    assert (loaded.values == callback.history[4].values).all()


def test_training_is_untouched(data):
    callback = ki.InfluenceCallback(data, data, every=1, damping=0.1)
    (watched, logs), (alone, expected) = fit(data, callback), fit(data)
    assert (truth.get_flat(watched) == truth.get_flat(alone)).all()
    assert logs == expected


def test_a_second_fit_starts_anew(data):
    callback = ki.InfluenceCallback(data, data, damping=0.1)
    fit(data, callback, epochs=2)
    fit(data, callback, epochs=1)
    assert list(callback.history) == [1]


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_bad_every_is_refused(every, data):
    with pytest.raises((ValueError, TypeError), match="`every`"):
        ki.InfluenceCallback(data, data, every=every)


def test_progress_is_shown_when_asked(data, capsys):
    model, _ = fit(data)
    ki.influence(model, data, data, damping=0.1, verbose=1, method="cg", batch_size=5)
    shown = capsys.readouterr().out
    for words in ("Gradients of 20 examples", "CG(", "residual", "Scores of 20", "4/4"):
        assert words in shown


def test_short_work_is_silent(data, capsys):
    model, _ = fit(data)
    ki.influence(model, data, data, damping=0.1, verbose=0)
    assert capsys.readouterr().out == ""
