"""Means of several models' scores, and scores relative to self-influence."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import retraining, truth


@pytest.fixture
def models(rng):
    """Three ridge models at the minima of three weightings of one data set."""
    train, test = retraining.ridge_problem(rng)
    found = []
    for _ in range(3):
        model = truth.ridge_model(4, truth.L2)
        truth.set_flat(model, truth.ridge_fit(train[0], train[1][:, 0], truth.L2, rng.random(40)))
        found.append(model)
    return found, train, test


def closed_form(model, train, test):
    """∇ℓ(test)ᵀ H⁻¹ ∇ℓ(train) / n and ∇ℓ(train)ᵀ H⁻¹ ∇ℓ(train) at the model's weights."""
    theta, n = truth.get_flat(model), len(train[0])
    h = 2 * train[0].T @ train[0] / n + 2 * truth.L2 * np.eye(4)
    rows, asked = (2 * (x @ theta - y[:, 0])[:, None] * x for x, y in (train, test))
    solved = np.linalg.solve(h, rows.T)
    return asked @ solved / n, np.einsum("ij,ji->i", rows, solved)


def test_a_list_of_models_is_averaged(models):
    models, train, test = models
    expected = np.stack([closed_form(m, train, test)[0] for m in models])
    scores = ki.influence(models, test, train, damping=0.0)
    assert truth.relative_error(scores.values, expected.mean(0)) < 1e-6
    deviation = expected - expected.mean(0)
    assert truth.relative_error(scores.error, np.sqrt((deviation**2).sum(0) / 2 / 3)) < 1e-5
    assert "mean of       3 models" in repr(scores)
    each = np.stack([closed_form(m, train, test)[1] for m in models])
    assert truth.relative_error(ki.self_influence(models, train, damping=0.0), each.mean(0)) < 1e-6
    own = ki.averaged_self_influence(models, train, damping=0.0, indices=[1, 7, 30])
    assert truth.relative_error(own, each[:, [1, 7, 30]].mean(0)) < 1e-6
    deviation = np.sqrt(((each - each.mean(0)) ** 2).sum(0) / 2 / 3)[[1, 7, 30]]
    assert truth.relative_error(own.error, deviation) < 1e-5
    assert (len(own), own.models) == (3, 3)
    with pytest.raises(TypeError, match="`models` should be a list"):
        ki.averaged_self_influence(models[0], train)


def test_the_error_is_saved_and_one_model_has_none(models, tmp_path):
    models, train, test = models
    scores = ki.influence(models[:2], test, train)
    scores.save(tmp_path / "scores")
    loaded = ki.InfluenceScores.load(tmp_path / "scores")
    assert (loaded.error == scores.error).all() and repr(loaded) == repr(scores)
    assert ki.influence(models[0], test, train).error is None


@pytest.mark.slow
def test_what_takes_no_list_says_what_does(models):
    models, train, test = models
    with pytest.raises(TypeError, match="one model here.*`influence`.*Received: a list of 3"):
        ki.top_influence(models, test, train)
    with pytest.raises(TypeError, match="one model here.*`self_influence`"):
        ki.find_label_issues(models, train)


def test_an_average_has_a_short_repr():
    values = np.linspace(0.0, 1.0, 5000)[::-1]
    text = repr(ki.AveragedSelfInfluence(values, 0.1 * values, 3))
    assert "AveragedSelfInfluence: 5000 training examples, mean of 3 models" in text
    assert "largest: 1 ± 0.1 at position 0; median 0.5" in text
    assert len(text) < 300


def test_replays_are_averaged_too(rng):
    x, y = rng.normal(size=(12, 4)), rng.normal(size=(12, 1))
    replays, parts = [], []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        model = truth.ridge_model(4)
        replay = ki.Replay(x, y, batch_size=4, seed=seed)
        model.fit(replay.data, shuffle=False, epochs=2, verbose=0, callbacks=[replay])
        parts.append(replay.influence((x[:2], y[:2])))
        replays.append(replay)
    scores = ki.replay_influence(replays, (x[:2], y[:2]))
    assert (scores.values == (parts[0].values + parts[1].values) / 2).all()
    assert truth.relative_error(2 * scores.error, abs(parts[0].values - parts[1].values)) < 1e-9
    other = ki.Replay(x[::-1], y[::-1], batch_size=4)
    with pytest.raises(ValueError, match="the same training data in the same order"):
        ki.replay_influence([replays[0], other], (x[:2], y[:2]))
    with pytest.raises(TypeError, match="`replays` should be `Replay`s"):
        ki.replay_influence(replays[0].model.layers, (x[:2], y[:2]))
    with pytest.raises(ValueError, match="two models or more"):
        ki.replay_influence(replays[:1], (x[:2], y[:2]))


def test_relative_scores_are_over_the_root_of_self_influence(models):
    (model, *_), train, test = models
    values, own = closed_form(model, train, test)
    scores = ki.influence(model, test, train, damping=0.0)
    relative = scores.relative(ki.self_influence(model, train, damping=0.0))
    assert truth.relative_error(relative.values, values / np.sqrt(own)) < 1e-6
    assert "over √self-influence" in repr(relative)
    # By Cauchy and Schwarz an example is its own first proponent.
    own_scores = ki.influence(model, train, train, damping=0.0)
    first = own_scores.relative(ki.self_influence(model, train, damping=0.0)).top(1).indices[:, 0]
    agrees = closed_form(model, train, train)[0].diagonal() > 0
    assert (first == np.arange(40))[agrees].all()


def test_what_does_not_fit_is_refused(models):
    models, train, test = models
    scores = ki.influence(models[0], test, train)
    with pytest.raises(ValueError, match="two models or more"):
        ki.influence(models[:1], test, train)
    with pytest.raises(ValueError, match="`store` is for one model"):
        ki.influence(models, test, train, store="folder")
    with pytest.raises(ValueError, match="two models or more"):
        ki.InfluenceScores.averaged([scores])
    with pytest.raises(ValueError, match="same target"):
        ki.InfluenceScores.averaged([scores, dataclasses.replace(scores, target="margin")])
    with pytest.raises(ValueError, match="`self_influence` should be 40 numbers >= 0"):
        scores.relative(np.ones(3))
