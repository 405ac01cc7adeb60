"""`Replay` against Keras's own `fit` with other sample weights: same start, order and seeds."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import keras_influence as ki
from tests.truth import relative_error

N, BATCH, EPOCHS, STEP = 10, 4, 3, 1e-5


class Trained:
    """A model that Keras trains again and again from the same start, with other sample weights."""

    def __init__(self, model, x, y, **options):
        self.model, self.data, self.options = model, (x, y), options
        model.optimizer.build(model.trainable_variables)
        self.variables = [*model.variables, *model.optimizer.variables]
        self.start = [v.numpy() for v in self.variables]

    def fit(self, weights=None, epochs=EPOCHS, callbacks=(), **options):
        for variable, value in zip(self.variables, self.start):
            variable.assign(value)
        options = {"batch_size": BATCH, "sample_weight": weights, **self.options, **options}
        replay = ki.Replay(*self.data, **options)
        options = {"epochs": epochs, "shuffle": False, "verbose": 0}
        self.model.fit(replay.data, callbacks=[*callbacks, replay], **options)
        return replay

    def change(self, test, direction, weights=None, **options):
        """Central difference of test losses along a direction of weights' factors."""
        weights = np.ones(len(direction)) if weights is None else weights

        def at(t):
            self.fit(weights * (1 + t * STEP * direction), **options)
            return ki.losses(self.model, test)

        return (at(1) - at(-1)) / (2 * STEP)


def network(*between, activation="tanh", l2=1 / 32):
    keras.utils.set_random_seed(0)
    regulariser = keras.regularizers.L2(l2)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation=activation),
            *between,
            keras.layers.Dense(3, "softmax", kernel_regularizer=regulariser),
        ]
    )


def trained(optimizer, *between, **options):
    model = network(*between)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return Trained(model, *DATA, **options)


def _data(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n)


DATA, TEST = _data(N, 0), _data(3, 1)
DIRECTION = np.random.default_rng(2).normal(size=N)
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 9, warmup_target=0.3, warmup_steps=3)


def optimizers():
    return {
        "nesterov, schedule": SGD(SCHEDULE, momentum=0.9, nesterov=True),
        "adam": Adam(0.05),
        "adamw, clipped": keras.optimizers.AdamW(0.05, weight_decay=0.1, global_clipnorm=0.1),
        "accumulation": Adam(0.05, gradient_accumulation_steps=2, clipnorm=0.1),
        "average": SGD(0.3, use_ema=True, ema_momentum=0.7),
        "average taken": SGD(0.3, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=4),
        "nadam": keras.optimizers.Nadam(0.05),
        "scaled": SGD(0.3, loss_scale_factor=64.0, weight_decay=0.1),
    }


@pytest.mark.slow_cases(
    "accumulation", "nadam", "average", "average taken", "scaled", "nesterov, schedule"
)
@pytest.mark.parametrize("name", list(optimizers()))
def test_it_is_the_derivative_of_the_run_by_any_optimizer(name):
    run = trained(optimizers()[name])
    actual = run.change(TEST, DIRECTION)
    scores = run.fit().influence(TEST)
    assert scores.values.shape == (3, N)
    assert relative_error(-scores.values @ DIRECTION, actual) < 1e-6
    assert scores.details["rounding"] < 1e-9
    assert scores.details["steps"] == 9


def check(run, test=TEST, weights=None, tolerance=1e-6, **options):
    """Scores are the central difference of `fit`, along a direction of all sample weights."""
    actual = run.change(test, DIRECTION, weights, **options)
    scores = run.fit(weights, **options).influence(test)
    assert relative_error(-scores.values @ DIRECTION, actual) < tolerance
    return scores


def test_batch_normalization_and_dropout_are_as_in_training():
    """Test losses depend on the moving statistics too, and the masks are those of the run."""
    between = keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dropout(0.3, seed=1)
    check(trained(SGD(0.1, momentum=0.9), *between))


def test_sample_weights_and_class_weights_stay_where_they_are(rng):
    run, classes = trained("sgd"), {0: 0.5, 1: 2.0, 2: 1.0}
    scores = check(run, weights=rng.uniform(0.5, 2, N))
    by_class = run.fit(class_weight=classes).influence(TEST)
    by_example = run.fit(np.array([classes[label] for label in DATA[1]])).influence(TEST)
    assert relative_error(by_class.values, by_example.values) < 1e-12
    assert relative_error(by_class.values, scores.values) > 0.1


def test_a_weight_that_no_example_reaches_moves_by_adam_as_it_should():
    """Its second moment is zero, where the square root has no derivative."""
    run = trained(Adam(0.05))
    run.data[0][:, 2] = 0
    try:
        scores = check(run)
    finally:
        run.data = _data(N, 0)
    assert np.isfinite(scores.values).all()


def test_embeddings_whose_rows_come_twice_in_a_batch(rng):
    """Keras's optimizers take their gradients row by row, and RMSprop in a branch."""
    x, y, test = rng.integers(0, 6, (N, 5)), rng.normal(size=N), rng.integers(0, 6, (3, 5))
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(6, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True), "mse")
    check(Trained(model, x, y[:, None]), (test, rng.normal(size=(3, 1))))


@pytest.mark.slow
def test_a_weight_is_for_all_steps_of_a_sequence(rng):
    """Keras itself takes a weight of shape (1,) for each example there, or one for each step."""
    x, y, test = (rng.normal(size=(n, 6, k)) for n, k in [(N, 4), (N, 1), (3, 4)])
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Masking(), keras.layers.SimpleRNN(2, return_sequences=True)]
    model = keras.Sequential([keras.Input((6, 4)), *layers, keras.layers.Dense(1)])
    x[0, 4:] = x[3, 2:] = 0
    model.compile("sgd", "mse")
    run = Trained(model, x, y)
    test = test, rng.normal(size=(3, 6, 1))

    def at(t):
        run.fit((1 + t * STEP * DIRECTION)[:, None])
        return ki.losses(model, test)

    actual = (at(1) - at(-1)) / (2 * STEP)
    assert relative_error(-run.fit().influence(test).values @ DIRECTION, actual) < 1e-6


@pytest.mark.slow
def test_convolutions_two_outputs_and_an_added_loss(rng):
    x, test = rng.normal(size=(N, 6, 6, 1)), rng.normal(size=(3, 6, 6, 1))
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    hidden = keras.layers.Conv2D(2, 3, activation="gelu", activity_regularizer="l2")(inputs)
    hidden = keras.layers.Flatten()(keras.layers.LayerNormalization()(hidden))
    outputs = [keras.layers.Dense(1)(hidden), keras.layers.Dense(2, "softmax")(hidden)]
    model = keras.Model(inputs, outputs)
    model.compile(Adam(0.01), ["mse", "sparse_categorical_crossentropy"], loss_weights=[1.0, 0.5])
    y = [rng.normal(size=(N, 1)), rng.integers(0, 2, N)]
    check(Trained(model, x, y), (test, [part[:3] for part in y]))


def test_a_target_in_place_of_the_loss():
    run = trained("sgd")

    def logit(x, y, y_pred):
        return keras.ops.log(y_pred[:, 0])

    def at(t):
        run.fit(np.ones(N) + t * STEP * DIRECTION)
        return np.log(run.model.predict(TEST[0], verbose=0)[:, 0])

    actual = (at(1) - at(-1)) / (2 * STEP)
    scores = run.fit().influence(TEST, target=logit)
    assert relative_error(-scores.values @ DIRECTION, actual) < 1e-6
    assert scores.target == "logit"


# ---- other callbacks


@pytest.mark.slow
def test_a_callback_may_set_the_learning_rate():
    rates = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.3 / (1 + epoch))
    check(trained(SGD(1.0, momentum=0.9)), callbacks=[rates])


class Restore(keras.callbacks.Callback):
    """What `EarlyStopping(restore_best_weights=True)` does."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.weights = epoch, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.weights = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)


@pytest.mark.slow_cases("few states")
@pytest.mark.parametrize("budget", [None, 1.0], ids=["all states", "few states"])
def test_the_run_ends_where_earlier_weights_were_restored(budget):
    options = {"callbacks": [Restore(1)], "epochs": 4, "budget": budget}
    scores = check(trained(Adam(0.05)), **options)
    assert scores.details["steps"] == 6


def test_a_callback_that_changes_weights_is_found_out():
    class Shrink(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.layers[0].kernel
            kernel.assign(0.9 * kernel)

    replay = trained("sgd").fit(callbacks=[Shrink()])
    with pytest.raises(ValueError, match="not the one that `fit` did: after 9 of 9.*dense.*kernel"):
        replay.influence(TEST)


def test_class_weights_that_are_given_to_fit_are_found_out():
    run = trained("sgd")
    replay = ki.Replay(*DATA, batch_size=BATCH)
    run.model.fit(
        replay.data, epochs=1, verbose=0, callbacks=[replay], class_weight={0: 1, 1: 2, 2: 3}
    )
    with pytest.raises(ValueError, match="`class_weight` belongs to `Replay`"):
        replay.influence(TEST)


def test_steps_that_keras_runs_together():
    run = trained(Adam(0.05), keras.layers.Dropout(0.3, seed=1))
    run.model.steps_per_execution = 2
    check(run)


# ---- states


@pytest.mark.slow_cases("folder")
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_states_that_do_not_fit_are_run_again(where, tmp_path):
    run = trained(Adam(0.05), keras.layers.Dropout(0.3, seed=1))
    expected = run.fit(epochs=9).influence(TEST)
    folder = None if where == "memory" else tmp_path / "run"
    replay = run.fit(epochs=9, budget=1.0, folder=folder)
    scores = replay.influence(TEST)
    assert relative_error(scores.values, expected.values) < 1e-12
    assert expected.details["forwards"] == 0
    assert scores.details["backwards"] == 27
    assert 0 < scores.details["forwards"] < 4 * 27
    if folder:
        assert len(list(folder.glob("state_*.npy"))) == 4 + 1


def test_another_process_goes_on_from_the_folder(tmp_path):
    run = trained(Adam(0.05))
    replay = run.fit(folder=tmp_path / "run")
    expected = replay.influence(TEST)
    run.model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    loaded = ki.Replay.load(tmp_path / "run", model, *DATA)
    assert relative_error(loaded.influence(TEST).values, expected.values) < 1e-12
    with pytest.raises(ValueError, match="another data"):
        ki.Replay.load(tmp_path / "run", model, DATA[0] + 1, DATA[1])
    with pytest.raises(ValueError, match="`folder` should hold a training"):
        ki.Replay.load(tmp_path, model, *DATA)
    with pytest.raises(ValueError, match="`folder` should be empty"):
        run.fit(folder=tmp_path / "run")


def test_a_call_that_was_killed_goes_on_from_its_folder(tmp_path, monkeypatch):
    run = trained(Adam(0.05))
    replay = run.fit(folder=tmp_path)
    expected = replay.influence(TEST)
    monkeypatch.setattr("keras_influence.questions.replay.halfway._EVERY", 0.0)
    back, calls = type(replay._step).back, []

    def killed(self, *args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return back(self, *args)

    monkeypatch.setattr(type(replay._step), "back", killed)
    with pytest.raises(KeyboardInterrupt):
        replay.influence(TEST)
    again = replay.influence(TEST)
    assert len(calls) == 5 + 9 - 4
    assert (again.values == expected.values).all()
    assert not list(tmp_path.glob("halfway*"))


@pytest.mark.slow
def test_test_examples_that_do_not_fit_go_back_in_blocks(monkeypatch, tmp_path):
    """A call that was killed keeps the blocks that it had done; a dataset's batches are joined."""
    run = trained(Adam(0.05))
    replay = run.fit(folder=tmp_path)
    expected = replay.influence(TEST)
    bytes_of_a_row = 8 * replay._step.state.size
    monkeypatch.setattr("keras_influence.questions.replay.replay._MEMORY", 2 * 4 * bytes_of_a_row)
    back, calls = type(replay._step).back, []

    def killed(self, *args):
        calls.append(args)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return back(self, *args)

    monkeypatch.setattr(type(replay._step), "back", killed)
    with pytest.raises(KeyboardInterrupt):
        replay.influence(TEST)
    batches = tf.data.Dataset.from_tensor_slices(TEST).batch(1)
    scores = replay.influence(batches)
    assert len(calls) == 12 + 9
    assert relative_error(scores.values, expected.values) < 1e-12
    assert not list(tmp_path.glob("halfway*"))


# ---- what a run does with other data


def test_runs_with_other_weights_are_what_fit_does(rng):
    run = trained(Adam(0.05), keras.layers.Dropout(0.3, seed=1))
    weights = rng.uniform(0, 1, N)
    run.fit(weights)
    expected = ki.losses(run.model, TEST)
    replay = run.fit()
    before = [v.numpy() for v in run.variables]
    assert relative_error(replay.losses(TEST, weights), expected) < 1e-10
    assert relative_error(replay.losses(TEST), ki.losses(run.model, TEST)) < 1e-10
    assert all((v.numpy() == b).all() for v, b in zip(run.variables, before))


@pytest.mark.slow
def test_predictions_hold_for_runs_of_keras_without_examples(rng):
    """Leave-one-out, and the linear datamodelling score of removals of a tenth, by `fit` itself."""
    model = network()
    model.compile(SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    n, test = 60, _data(8, 3)
    run = Trained(model, *_data(n, 4), batch_size=20)
    values = run.fit().influence(test).values
    base = ki.losses(model, test)

    def change(left_out):
        run.fit(np.isin(np.arange(n), left_out, invert=True).astype(float))
        return ki.losses(model, test) - base

    actual = np.stack([change([j]) for j in range(6)], axis=1)
    assert np.corrcoef(values[:, :6].ravel(), actual.ravel())[0, 1] > 0.99
    assert 0.95 < np.polyfit(values[:, :6].ravel(), actual.ravel(), 1)[0] < 1.05
    groups = [rng.choice(n, 6, replace=False) for _ in range(10)]
    predicted = np.stack([values[:, group].sum(1) for group in groups])
    happened = np.stack([change(group) for group in groups])
    assert np.mean([scipy.stats.spearmanr(p, a)[0] for p, a in zip(predicted.T, happened.T)]) > 0.95


@pytest.mark.slow
def test_smoothness_says_what_is_what():
    smooth = trained(SGD(0.05)).fit()
    found = smooth.smoothness(TEST, fraction=0.1, trials=5)
    assert found.smooth and found.pearson > 0.95 and not found.advice
    assert "in size too" in repr(found)
    actual = smooth.losses(TEST, np.arange(N) != 3) - smooth.losses(TEST)
    assert relative_error(smooth.influence(TEST).values[:, 3], actual) < 0.1
    rough = trained(Adam(1.0), keras.layers.ReLU()).fit(epochs=20)
    found = rough.smoothness(TEST, fraction=0.1, trials=5)
    assert not found.smooth
    assert "epsilon=1e-4" in repr(found) and "re_lu" in repr(found)


# ---- nothing is changed; what cannot be replayed


def test_training_and_the_model_are_as_without_it():
    run = trained(Adam(0.05), keras.layers.Dropout(0.3, seed=1))
    replay = run.fit()
    after = [v.numpy() for v in run.variables]
    replay.influence(TEST)
    replay.smoothness(TEST, trials=1)
    assert all((v.numpy() == a).all() for v, a in zip(run.variables, after))
    run.fit(callbacks=[])
    order = ki.Replay(*DATA, batch_size=BATCH)
    for variable, value in zip(run.variables, run.start):
        variable.assign(value)
    for epoch in range(EPOCHS):
        order._number = epoch
        run.model.fit(order.data, epochs=1, verbose=0)
    assert all((v.numpy() == a).all() for v, a in zip(run.variables, after))


def test_without_a_training_it_says_what_to_do():
    with pytest.raises(ValueError, match="Replay has no training"):
        ki.Replay(*DATA).influence(TEST)
    run = trained("sgd")
    replay = run.fit()
    run.model.layers[0].bias.assign_add(np.ones(5))
    with pytest.raises(ValueError, match="has not the weights of the end"):
        replay.influence(TEST)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


def test_what_cannot_be_replayed_is_refused_by_name():
    replay = ki.Replay(*DATA, batch_size=BATCH)
    model = OwnStep([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`train_step` of its own"):
        model.fit(replay.data, callbacks=[replay], verbose=0)
    with pytest.raises(ValueError, match="`model.fit\\(replay.data"):
        trained("sgd").model.fit(*DATA, callbacks=[replay], verbose=0, batch_size=2)
    keras.config.set_dtype_policy("bfloat16")
    model = trained("sgd").model
    with pytest.raises(ValueError, match="half precision"), pytest.warns(ki.ObjectiveWarning):
        model.fit(replay.data, callbacks=[replay], verbose=0)
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(ValueError, match="LossScaleOptimizer"):
        trained("sgd").model.fit(replay.data, callbacks=[replay], verbose=0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(ValueError, match="mixed precision"):
        trained("sgd").model.fit(replay.data, callbacks=[replay], verbose=0)
    with pytest.raises((ValueError, TypeError), match="`batch_size`"):
        ki.Replay(*DATA, batch_size=0)


class Unweighted(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean((y_pred - keras.ops.one_hot(y, 3)) ** 2)


def test_a_loss_that_ignores_sample_weights_is_refused():
    model = Unweighted([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd")
    replay = Trained(model, *DATA).fit()
    with pytest.raises(ValueError, match="ignores `sample_weight`"):
        replay.influence(TEST)


def test_a_run_of_steps_without_a_derivative_is_told_from_a_loss_without_weights():
    """Lion steps by signs: sample weights have an effect where they turn one round, and a derivative nowhere."""
    run = trained(keras.optimizers.Lion(0.05))
    replay = run.fit()
    with pytest.raises(
        ValueError, match="derivative .* is zero.*Lion.*Adam or SGD.*`losses"
    ) as error:
        replay.influence(TEST)
    assert "compute_loss" not in str(error.value)
    weights = (np.arange(N) > 4).astype(float)
    whole, part = replay.losses(TEST), replay.losses(TEST, weights)
    assert np.abs(part - whole).min() > 1e-3
    run.fit(weights)
    assert relative_error(part, ki.losses(run.model, TEST)) < 1e-9
    model = Unweighted([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Lion(0.05))
    with pytest.raises(ValueError, match="ignores `sample_weight`"):
        Trained(model, *DATA).fit().influence(TEST)


def test_scores_say_what_they_are(tmp_path):
    scores = trained("sgd").fit().influence(TEST)
    assert "derivative    of 9 steps of training, replayed" in repr(scores)
    assert "helpful" in repr(scores) and "converged" not in repr(scores)
    scores.save(tmp_path / "scores")
    assert repr(ki.InfluenceScores.load(tmp_path / "scores")) == repr(scores)
