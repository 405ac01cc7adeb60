"""TracIn against gradients taken one at a time, and against what training did to test losses."""

import warnings

import keras
import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf

import keras_influence as ki
from tests import truth


def dense_gradients(model, x, y):
    """(n, p) gradients of the losses of single examples, one tape each."""
    rows = []
    for i in range(len(y)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.loss(y[i : i + 1], model(x[i : i + 1], training=False)))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([g.numpy().ravel() for g in gradients]))
    return np.array(rows)


def losses(model, x, y):
    return np.array([float(model.loss(y[i : i + 1], model(x[i : i + 1]))) for i in range(len(y))])


def net(optimizer, reduction="sum_over_batch_size", extra=()):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(6, "tanh"), *extra, keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizer, loss)
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, 3, 24)


class Recorder(keras.callbacks.Callback):
    """The weights after each epoch, kept without the library."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_begin(self, logs=None):
        self.weights.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())


def trapezoid(model, recorded, times, test, train):
    """(1/n) ∫ ∇ℓ(test) · ∇ℓ(train) dt over recorded weights, with n the training examples."""
    products = []
    for weights in recorded:
        model.set_weights(weights)
        products.append(dense_gradients(model, *test) @ dense_gradients(model, *train).T)
    return scipy.integrate.trapezoid(products, times, axis=0) / len(train[1])


def test_the_sum_over_checkpoints(data, test):
    """Batches of 8 make 3 steps an epoch, the last of 0.1·0.9ᵗ."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9)
    model, tracin, recorder = net(keras.optimizers.SGD(schedule)), ki.TracIn(), Recorder()
    model.fit(*data, batch_size=8, epochs=4, verbose=0, callbacks=[tracin, recorder])
    times = [sum(0.1 * 0.9**t for t in range(3 * epoch)) for epoch in range(5)]
    assert np.allclose([c.time for c in tracin.checkpoints], times, rtol=1e-6)
    scores = tracin.influence(model, test, data)
    exact = trapezoid(model, recorder.weights, times, test, data)
    assert truth.relative_error(scores.values, exact) < 1e-6
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(7)
    assert truth.relative_error(tracin.influence(model, test, dataset).values, exact) < 1e-6


def test_a_schedule_counts_each_step_of_an_execution(data):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model, tracin = net(keras.optimizers.SGD(schedule)), ki.TracIn()
    model.compile(model.optimizer, model.loss, steps_per_execution=3)
    model.fit(*data, batch_size=8, epochs=2, verbose=0, callbacks=[tracin])
    times = [sum(0.1 * 0.5**t for t in range(3 * epoch)) for epoch in range(3)]
    assert np.allclose([c.time for c in tracin.checkpoints], times, rtol=1e-6)


def test_one_step_on_one_example(data, test):
    """A step of size η on z changes a test loss by -η ∇ℓ(test) · ∇ℓ(z), to first order in η."""
    z = data[0][:1], data[1][:1]
    errors = []
    for rate in (1e-2, 1e-3):
        model, tracin = net(keras.optimizers.SGD(rate)), ki.TracIn()
        before = losses(model, *test)
        model.fit(*z, epochs=1, verbose=0, callbacks=[tracin])
        drop = before - losses(model, *test)
        scores = tracin.influence(model, test, z).values[:, 0]
        errors.append(truth.relative_error(scores, drop))
    assert errors[0] < 1e-2
    assert errors[1] < 0.2 * errors[0]


# The error is of first order in the rate; over minibatches the visits are not quite even.
@pytest.mark.slow_cases(
    "sum_over_batch_size-6-0.0125-0.05", "sum_over_batch_size-24-0.05-0.02", "sum-24-0.005-0.002"
)
@pytest.mark.parametrize(
    ("batch_size", "rate", "bound"), [(24, 0.05, 0.02), (24, 0.005, 0.002), (6, 0.0125, 0.05)]
)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_all_examples_together_account_for_the_drop(reduction, batch_size, rate, bound, data, test):
    optimizer = keras.optimizers.SGD(rate / (1 if reduction != "sum" else batch_size))
    model, tracin = net(optimizer, reduction), ki.TracIn()
    before = losses(model, *test)
    model.fit(*data, batch_size=batch_size, epochs=20, verbose=0, callbacks=[tracin])
    drop = before - losses(model, *test)
    total = tracin.influence(model, test, data).values.sum(1)
    assert truth.relative_error(total, drop) < bound


def test_a_summed_loss_with_accumulated_gradients_is_the_same_training(data, test):
    """Steps of an eighth of the rate along sums over 8 are those along means, for SOURCE too."""
    found = []
    for reduction, rate in (("sum_over_batch_size", 0.08), ("sum", 0.01)):
        model = net(keras.optimizers.SGD(rate, gradient_accumulation_steps=3), reduction)
        tracin = ki.TracIn()
        model.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[tracin])
        asked = {"segments": 1, "method": "direct"}
        source = ki.source_influence(model, test, data, tracin, **asked).values
        found.append((tracin.influence(model, test, data).values, source))
    for mean, total in zip(*found):
        assert truth.relative_error(total, mean) < 1e-4


def test_self_influence_is_that_of_the_example_on_itself(data):
    model, tracin = net(keras.optimizers.SGD(0.1)), ki.TracIn()
    recorder = Recorder()
    model.fit(*data, batch_size=24, epochs=3, verbose=0, callbacks=[tracin, recorder])
    times = 0.1 * np.arange(4)
    exact = 24 * np.diag(trapezoid(model, recorder.weights, times, data, data))
    assert truth.relative_error(tracin.self_influence(model, data), exact) < 1e-6


def test_a_target_in_place_of_the_loss_for_some_weights(data, test):
    model, tracin = net(keras.optimizers.SGD(0.1)), ki.TracIn()
    recorder = Recorder()
    model.fit(*data, batch_size=24, epochs=1, verbose=0, callbacks=[tracin, recorder])

    def logit(x, y, y_pred):
        return y_pred[:, 0]

    head = model.layers[-1]
    found = tracin.influence(model, test, data, target=logit, variables=head)
    assert found.target == "logit"
    assert len(found.parameters) == 2
    exact = 0
    for weights in recorder.weights:
        model.set_weights(weights)
        hidden = np.hstack([np.tanh(test[0] @ weights[0] + weights[1]), np.ones((5, 1))])
        # Only the column of class 0 of the head moves that class's logit.
        columns = dense_gradients(model, *data)[:, -21:].reshape(-1, 7, 3)[:, :, 0]
        exact = exact + 0.05 * hidden @ columns.T / 24
    assert truth.relative_error(found.values, exact) < 1e-6


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_rates_of_a_callback_are_those_in_force(steps_per_execution, data):
    model, tracin = net(keras.optimizers.SGD(0.1)), ki.TracIn(every=2)
    model.compile("sgd", model.loss, steps_per_execution=steps_per_execution)
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (1 + epoch))
    model.fit(*data, batch_size=8, epochs=5, verbose=0, callbacks=[rates, tracin])
    assert [c.epoch for c in tracin.checkpoints] == [0, 2, 4, 5]
    assert [c.steps for c in tracin.checkpoints] == [0, 6, 12, 15]
    per_epoch = 1.5 / np.arange(1, 6)
    expected = [0, per_epoch[:2].sum(), per_epoch[:4].sum(), per_epoch.sum()]
    assert np.allclose([c.time for c in tracin.checkpoints], expected, rtol=1e-6)


def test_a_scaled_optimizer_and_accumulated_gradients(data):
    plain = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    for optimizer, steps in (
        (plain, 4),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), 12),
    ):
        model, tracin = net(optimizer), ki.TracIn()
        model.fit(*data, batch_size=8, epochs=4, verbose=0, callbacks=[tracin])
        rate = float(optimizer.learning_rate)
        assert tracin.checkpoints[-1].steps == steps
        assert tracin.checkpoints[-1].time == pytest.approx(rate * steps)


def test_training_is_untouched(data):
    found = []
    for callbacks in ([], [ki.TracIn()]):
        model = net("adam", extra=[keras.layers.Dropout(0.5, seed=3)])
        history = model.fit(*data, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
        found.append((truth.get_flat(model), history.history))
    assert (found[0][0] == found[1][0]).all()
    assert found[0][1] == found[1][1]


def test_the_model_comes_back_as_it_was(data, test):
    model = net("adam", extra=[keras.layers.BatchNormalization()])
    tracin = ki.TracIn()
    model.fit(*data, batch_size=8, epochs=3, verbose=0, callbacks=[tracin])
    before = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    calls = []

    def fails_later(x, y, y_pred):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("on purpose")
        return y_pred[:, 0]

    tracin.influence(model, test, data)
    tracin.self_influence(model, data)
    with pytest.raises(RuntimeError, match="on purpose"):
        tracin.influence(model, test, data, target=fails_later)
    after = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    assert all((a == b).all() for a, b in zip(before, after))


def test_moving_averages_are_those_of_the_checkpoint(data, test):
    model = net(keras.optimizers.SGD(0.1), extra=[keras.layers.BatchNormalization()])
    tracin, recorder = ki.TracIn(), Recorder()
    model.fit(*data, batch_size=24, epochs=3, verbose=0, callbacks=[tracin, recorder])
    scores = tracin.influence(model, test, data)
    exact = trapezoid(model, recorder.weights, 0.1 * np.arange(4), test, data)
    assert truth.relative_error(scores.values, exact) < 1e-6


def test_checkpoints_in_a_folder_outlive_the_process(data, test, tmp_path):
    model, tracin = net("sgd"), ki.TracIn(every=2, folder=tmp_path / "run")
    memory = ki.TracIn(every=2)
    model.fit(*data, batch_size=8, epochs=3, verbose=0, callbacks=[tracin, memory])
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == [f"checkpoint_000{i}.npz" for i in (0, 2, 3)]
    loaded = ki.TracIn.load(tmp_path / "run")
    for other in (tracin, loaded):
        for a, b in zip(other.checkpoints, memory.checkpoints, strict=True):
            assert (a.epoch, a.steps, a.time) == (b.epoch, b.steps, b.time)
            assert all((m == n).all() for m, n in zip(a.arrays(), b.arrays(), strict=True))
    values = loaded.influence(net("sgd"), test, data).values
    assert (values == memory.influence(model, test, data).values).all()


def test_the_folder_of_another_training_is_not_overwritten(data, tmp_path):
    net("sgd").fit(*data, epochs=1, verbose=0, callbacks=[ki.TracIn(folder=tmp_path)])
    with pytest.raises(ValueError, match="`folder` already holds the checkpoints"):
        net("sgd").fit(*data, epochs=1, verbose=0, callbacks=[ki.TracIn(folder=tmp_path)])


@pytest.mark.parametrize("stopping_first", [True, False])
def test_epochs_after_the_restored_one_do_not_count_in_silence(stopping_first, data, test):
    """Early stopping restores before or after the callback's turn; the sum is that of a shorter run."""
    stopping = keras.callbacks.EarlyStopping(
        "loss", patience=2, min_delta=9.0, restore_best_weights=True
    )
    model, tracin = net(keras.optimizers.SGD(0.1)), ki.TracIn()
    callbacks = [stopping, tracin] if stopping_first else [tracin, stopping]
    model.fit(*data, batch_size=8, epochs=9, shuffle=False, verbose=0, callbacks=callbacks)
    assert [c.epoch for c in tracin.checkpoints] == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match=r"weights of epoch 1.*`del tracin.checkpoints\[2:\]`"):
        tracin.influence(model, test, data)
    with pytest.warns(UserWarning, match="go on to epoch 3"):
        ki.source_influence(model, test, data, tracin, segments=1)
    del tracin.checkpoints[2:]
    short, known = net(keras.optimizers.SGD(0.1)), ki.TracIn()
    short.fit(*data, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=[known])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = (t.influence(model, test, data).values for t in (tracin, known))
    assert truth.relative_error(found, expected) < 1e-6
    tracin.checkpoints[:] = [tracin.checkpoints[0], known.checkpoints[-1]]
    model.set_weights([w + 1 for w in model.get_weights()])
    short.set_weights(model.get_weights())
    with pytest.warns(UserWarning, match=r"before 1.*TracIn\(every=1\)"):
        tracin.influence(short, test, data)


def test_scores_say_what_they_are(data, test, tmp_path):
    model, tracin = net("sgd"), ki.TracIn()
    model.fit(*data, epochs=2, verbose=0, callbacks=[tracin])
    scores = tracin.influence(model, test, data)
    assert "TracIn over 3 checkpoints, no curvature" in repr(scores)
    assert "helpful" in repr(scores)
    assert "converged" not in repr(scores)
    scores.save(tmp_path / "scores.npz")
    loaded = ki.InfluenceScores.load(tmp_path / "scores.npz")
    assert repr(loaded) == repr(scores)
    assert loaded.details == {"epochs": [0, 1, 2]}


@pytest.mark.parametrize("every", [0, -1, 1.5, None, True])
def test_bad_every_is_refused(every):
    with pytest.raises((ValueError, TypeError), match="`every`"):
        ki.TracIn(every=every)


def test_without_checkpoints_it_says_what_to_do(data, tmp_path):
    with pytest.raises(ValueError, match="no checkpoints of a training. Call `model.fit"):
        ki.TracIn().influence(net("sgd"), data, data)
    with pytest.raises(ValueError, match="`folder` should hold checkpoints"):
        ki.TracIn.load(tmp_path)
    np.savez(tmp_path / "checkpoint_0001.npz", np.ones(3))
    with pytest.raises(ValueError, match="`folder` should hold checkpoints.*is none"):
        ki.TracIn.load(tmp_path)
    net("sgd").fit(*data, epochs=1, verbose=0, callbacks=[ki.TracIn(folder=tmp_path / "run")])
    path = tmp_path / "run" / "checkpoint_0001.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"`folder` should hold.*checkpoint_0001.npz.*damaged"):
        ki.TracIn.load(tmp_path / "run")


def test_a_model_that_fit_would_build_is_refused_before_it_trains(data, test):
    """Of one that has been called the start is kept."""
    x, _ = data
    model = keras.Sequential([keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    tracin = ki.TracIn()
    with pytest.raises(ValueError, match="built before `fit`. Call it on a batch"):
        model.fit(*data, verbose=0, callbacks=[tracin])
    assert int(model.optimizer.iterations) == 0
    model(x[:2])
    model.fit(*data, verbose=0, callbacks=[tracin])
    assert np.any(tracin.influence(model, test, data).values)


def test_another_model_is_refused(data):
    tracin = ki.TracIn()
    net("sgd").fit(*data, epochs=1, verbose=0, callbacks=[tracin])
    with pytest.raises(ValueError, match="`model` should be the one that was trained"):
        tracin.influence(truth.softmax_model(4, 3), data, data)


def test_a_second_fit_goes_on(data, test):
    """Two trainings of two epochs are one of four, whatever number Keras gives the first of them."""
    model, tracin, recorder = net(keras.optimizers.SGD(0.1)), ki.TracIn(), Recorder()
    model.fit(*data, batch_size=8, epochs=2, verbose=0, callbacks=[tracin, recorder])
    recorder.weights.pop()  # The same as those that the second begins with.
    again = {"epochs": 4, "initial_epoch": 2}
    model.fit(*data, batch_size=8, verbose=0, callbacks=[tracin, recorder], **again)
    assert [c.epoch for c in tracin.checkpoints] == [0, 1, 2, 3, 4]
    assert [c.steps for c in tracin.checkpoints] == [0, 3, 6, 9, 12]
    exact = trapezoid(model, recorder.weights, [0, 0.3, 0.6, 0.9, 1.2], test, data)
    assert truth.relative_error(tracin.influence(model, test, data).values, exact) < 1e-6


def test_a_loaded_one_goes_on_in_its_folder(data, tmp_path):
    model = net(keras.optimizers.SGD(0.1))
    model.fit(*data, epochs=1, verbose=0, callbacks=[ki.TracIn(folder=tmp_path)])
    tracin = ki.TracIn.load(tmp_path)
    model.fit(*data, epochs=1, verbose=0, callbacks=[tracin])
    assert [c.epoch for c in ki.TracIn.load(tmp_path).checkpoints] == [0, 1, 2]
    assert [c.epoch for c in tracin.checkpoints] == [0, 1, 2]


def test_another_training_begins_anew_and_says_so(data):
    model, tracin = net(keras.optimizers.SGD(0.1)), ki.TracIn()
    first = model.get_weights()
    model.fit(*data, epochs=2, verbose=0, callbacks=[tracin])
    model.set_weights(first)
    with pytest.warns(UserWarning, match="forgets its checkpoints"):
        model.fit(*data, epochs=1, verbose=0, callbacks=[tracin])
    assert [c.epoch for c in tracin.checkpoints] == [0, 1]
    assert all(map(np.array_equal, tracin.checkpoints[0].arrays(), first))
