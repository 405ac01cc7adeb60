"""`damping="training"`: the length of a training, and what it predicts of one that was short."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth


def trained(optimizer, x, y, epochs):
    """Linear regression by full-batch steps from zero."""
    model = truth.ridge_model(x.shape[1])
    truth.set_flat(model, np.zeros(x.shape[1]))
    model.compile(optimizer, "mse")
    replay = ki.Replay(x, y, batch_size=len(x))
    model.fit(replay.data, epochs=epochs, shuffle=False, verbose=0, callbacks=[replay])
    return model, replay


@pytest.fixture
def data(rng):
    x = rng.normal(size=(30, 3))
    return x, x @ rng.normal(size=(3, 1)) + rng.normal(size=(30, 1))


SGD, schedules = keras.optimizers.SGD, keras.optimizers.schedules


@pytest.mark.slow_cases("momentum")
@pytest.mark.parametrize(
    "optimizer, time",
    [
        (SGD(0.25), 6 * 0.25),
        (SGD(0.25, momentum=0.75), 6 * 0.25 * 4),
        (SGD(schedules.PiecewiseConstantDecay([1], [0.5, 0.25])), 2 * 0.5 + 4 * 0.25),
        (SGD(0.25, gradient_accumulation_steps=2), 3 * 0.25),
    ],
    ids=["plain", "momentum", "schedule", "accumulation"],
)
def test_it_is_one_over_rate_times_steps(optimizer, time, data):
    model, _ = trained(optimizer, *data, epochs=6)
    scores = ki.influence(model, data, data, damping="training", method="direct")
    assert scores.damping == pytest.approx(1 / time)
    assert "of training" in scores.reason


def test_steps_that_loss_scaling_left_out_do_not_count(data):
    """A gradient that overflows moves nothing; Keras wraps SGD so in mixed precision."""
    model, moved = truth.ridge_model(3), []
    model.compile(keras.optimizers.LossScaleOptimizer(SGD(0.25, momentum=0.5)), "mse")
    scale, before = model.optimizer, []

    def begins(batch, logs):
        if scale.built:
            scale.dynamic_scale.assign(np.inf if batch in (1, 2) else 4.0)
        before.append(truth.get_flat(model))

    def ends(batch, logs):
        moved.append((truth.get_flat(model) != before[-1]).any())

    seen = keras.callbacks.LambdaCallback(on_train_batch_begin=begins, on_train_batch_end=ends)
    model.fit(*data, batch_size=5, shuffle=False, verbose=0, callbacks=[seen])
    assert moved == [True, False, False, True, True, True]
    scores = ki.influence(model, data, data, damping="training", method="direct")
    assert scores.damping == pytest.approx(1 / (4 * 0.25 * 2))


def test_a_summed_loss_is_the_same_training_in_other_units(rng):
    """Steps of a tenth of the rate along a sum over 10 are those along a mean."""
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    found = []
    for reduction, rate in (("sum_over_batch_size", 0.2), ("sum", 0.02)):
        model = truth.softmax_model(3, 2)
        truth.set_flat(model, np.zeros(8))
        loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
        model.compile(SGD(rate, gradient_accumulation_steps=2), loss)
        model.fit(x, y, batch_size=10, epochs=3, shuffle=False, verbose=0)
        found.append(ki.influence(model, (x[:5], y[:5]), (x, y), damping="training"))
    mean, total = found
    assert mean.damping == pytest.approx(1 / (6 * 0.2))
    assert total.damping == pytest.approx(40 * mean.damping)
    assert truth.relative_error(total.values, mean.values) < 1e-4
    copy = keras.models.clone_model(model)
    copy.compile(model.optimizer, model.loss)
    with pytest.raises(ValueError, match="how many batches an epoch had.*Give a number"):
        ki.influence(copy, (x, y), (x, y), damping="training")


@pytest.mark.slow
def test_it_predicts_a_training_that_was_stopped_early(rng):
    """It is the right decade: a minimum would let directions of little curvature count too much."""
    x = rng.normal(size=(60, 4)) * np.array([1.0, 0.3, 0.1, 0.03])
    y = x @ rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(60, 1))
    test = x[:5] + 0.1 * rng.normal(size=(5, 4)), y[:5]
    model, replay = trained(SGD(0.05), x, y, epochs=60)
    run = replay.influence(test).values

    def off(damping):
        options = {"damping": damping, "method": "direct"}
        return truth.relative_error(ki.influence(model, test, (x, y), **options).values, run)

    known = 1 / (60 * 0.05)
    decades = {damping: off(damping) for damping in known * 10.0 ** np.arange(-2, 3)}
    assert off("training") == pytest.approx(min(decades.values()))
    assert off("training") < off(0.0) / 3


def test_what_has_no_such_time_is_refused(data):
    model, _ = trained("adam", *data, epochs=1)
    with pytest.raises(ValueError, match="needs the learning rate of SGD.*Received: Adam"):
        ki.influence(model, data, data, damping="training")
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    with pytest.raises(ValueError, match="Received: LossScaleOptimizer of Adam"):
        ki.influence(model, data, data, damping="training")
    with pytest.raises(ValueError, match="has done no step"):
        ki.influence(truth.ridge_model(3), data, data, damping="training")
    with pytest.raises((ValueError, TypeError), match="`damping`"):
        ki.influence(truth.ridge_model(3), data, data, damping="trained")
