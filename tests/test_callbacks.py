"""InfluenceCallback, and the progress bars."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.report.pages import Page
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


def test_where_training_diverges_fit_ends_as_without(data):
    """In the last epochs: the scores before them are kept."""

    def rate(epoch):
        return 0.01 if epoch < 3 else np.inf

    diverging = keras.callbacks.LearningRateScheduler(rate)
    callback = ki.InfluenceCallback(data, data, every=2, damping=0.1)
    with pytest.warns(UserWarning, match="no scores for epoch 4: training has diverged"):
        model, logs = fit(data, diverging, callback)
    assert np.isnan(truth.get_flat(model)).all() and len(logs["loss"]) == 5
    assert list(callback.history) == [2]
    assert callback.scores is callback.history[2]


def test_where_only_the_loss_overflows_fit_ends_as_without(data):
    """The weights are finite, what they make of the examples is not."""

    class Jump(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                kernel = self.model.trainable_variables[0]
                kernel.assign(keras.ops.full_like(kernel, 1.5e308))

    callback = ki.InfluenceCallback(data, data, every=2, damping=0.1)
    with pytest.warns(UserWarning, match="no scores for epoch 4: .*NaN or infinite"):
        model, logs = fit(data, Jump(), callback, epochs=4)
    assert len(logs["loss"]) == 4
    assert list(callback.history) == [2]


def test_where_a_solve_has_no_answer_fit_ends_as_without(data):
    """A penalty whose curvature is minus one takes the damping's place."""
    model = ki.InfluenceModel.from_model(truth.softmax_model(4, 3, 0.5))
    model.compile("sgd", lambda y, p: -keras.ops.sum(keras.ops.square(p), axis=-1))
    callback = ki.InfluenceCallback(
        data, data, damping=1e-6, curvature="hessian", method="cg", verbose=0
    )
    with pytest.warns(UserWarning, match="no scores for epoch 1: CG met negative curvature"):
        model.fit(*data, verbose=0, callbacks=[callback])
    assert callback.scores is None


@pytest.mark.slow
def test_a_second_fit_starts_anew(data):
    callback = ki.InfluenceCallback(data, data, damping=0.1)
    fit(data, callback, epochs=2)
    with pytest.warns(UserWarning, match="InfluenceCallback forgets its history"):
        fit(data, callback, epochs=1)
    assert list(callback.history) == [1]


def test_a_second_fit_that_goes_on_goes_on_counting(data, tmp_path):
    callback = ki.InfluenceCallback(data, data, every=2, folder=tmp_path, damping=0.1)
    model, _ = fit(data, callback, epochs=3)
    first = {epoch: scores.values for epoch, scores in callback.history.items()}
    # Cut off in its second epoch.
    cut = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: [0][epoch])
    with pytest.raises(IndexError):
        model.fit(*data, epochs=2, verbose=0, callbacks=[callback, cut])
    model.fit(*data, epochs=1, verbose=0, callbacks=[callback])
    model.fit(*data, initial_epoch=5, epochs=6, verbose=0, callbacks=[callback])
    assert list(callback.history) == [2, 3, 4, 5, 6]
    for epoch, values in first.items():
        assert (callback.history[epoch].values == values).all()
        loaded = ki.InfluenceScores.load(tmp_path / f"epoch_{epoch:04d}.npz")
        assert (loaded.values == values).all()
    assert len(list(tmp_path.iterdir())) == 5
    assert truth.relative_error(callback.scores.values * 20, closed_form(model, data, 0.1)) < 1e-6
    with pytest.raises(ValueError, match="`folder` already holds the scores of another training"):
        fit(data, callback, epochs=1)


def test_a_fit_that_goes_on_from_restored_weights_goes_on_counting(data):
    """Which early stopping restores after this callback had its turn."""
    callback = ki.InfluenceCallback(data, data, damping=0.1)
    stopping = keras.callbacks.EarlyStopping(
        "loss", patience=1, min_delta=9.0, restore_best_weights=True
    )
    model, _ = fit(data, callback, stopping, epochs=3)
    restored = closed_form(model, data, 0.1)
    model.fit(*data, epochs=1, verbose=0, callbacks=[callback])
    assert list(callback.history) == [2, 3]
    assert truth.relative_error(callback.history[2].values * 20, restored) < 1e-6


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_bad_every_is_refused(every, data):
    with pytest.raises((ValueError, TypeError), match="`every`"):
        ki.InfluenceCallback(data, data, every=every)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"depth": 3}, TypeError, "`depth` is an unexpected keyword argument"),
        ({"damping": -1}, ValueError, "`damping` should be a number >= 0"),
        ({"target": "margin"}, TypeError, "`target` should be a function"),
        ({"folder": __file__}, ValueError, "`folder` should be a folder"),
        ({"log_dir": __file__}, ValueError, "`log_dir` should be a folder"),
    ],
)
def test_bad_settings_do_not_wait_for_the_end_of_training(options, error, words, data):
    with pytest.raises(error, match=words):
        ki.InfluenceCallback(data, data, **options)


@pytest.mark.parametrize("name", ["test", "train"])
def test_bad_arrays_do_not_wait_for_the_end_of_training(name, data):
    x, y = data
    given = {"test": data, "train": data} | {name: (x, y[:-1])}
    with pytest.raises(ValueError, match=f"`{name}`"):
        ki.InfluenceCallback(**given)


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("train", lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).shuffle(20).batch(8), ValueError),
        ("test", lambda x, y: x, TypeError),
        ("test", lambda x, y: tf.data.Dataset.from_tensor_slices(x).batch(8), ValueError),
    ],
    ids=["shuffled", "array", "unlabelled"],
)  # fmt: skip
def test_bad_data_does_not_wait_for_the_end_of_training(name, given, error, data):
    callback = ki.InfluenceCallback(**{"test": data, "train": data, name: given(*data)})
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    with pytest.raises(error, match=f"`{name}`"):
        fit(data, callback, watch)
    assert not seen


def closed_form(model, data, damping):
    """∇ℓᵀ (H + λI)⁻¹ ∇ℓ for all pairs."""
    closed, theta = truth.SoftmaxRegression(*data, 3, L2), truth.get_flat(model)
    g = closed.example_gradients(theta)
    return g @ np.linalg.solve(closed.hessian(theta) + damping * np.eye(15), g.T)


def read_events(folder):
    """{tag: {step: tensor}} of all event files in a folder."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    return found


def test_a_model_that_fit_builds_is_asked_about_after_a_batch(data):
    def fit(train):
        model = keras.Sequential([keras.layers.Dense(3, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        callback = ki.InfluenceCallback(data, train)
        seen = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: batches.append(batch)
        )
        model.fit(*data, batch_size=4, verbose=0, callbacks=[callback, seen])
        return callback

    batches = []
    assert list(fit(data).history) == [1]
    batches.clear()
    with pytest.raises(ValueError, match="`train`"):
        fit((data[0][:, :2], data[1]))
    assert not batches


def test_tensorboard_gets_gallery_histograms_and_residuals(data, tmp_path):
    pytest.importorskip("tensorboard")
    images = data[0].reshape(20, 2, 2), data[1]
    keras.utils.set_random_seed(2)
    inputs = keras.Input((2, 2))
    dense = keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(L2))
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    model.compile("adam", "sparse_categorical_crossentropy")
    test = tuple(t[:3] for t in images)
    callback = ki.InfluenceCallback(
        test, images, every=2, log_dir=tmp_path, damping=0.1, method="cg",
        target=lambda x, y, y_pred: y_pred[:, 0],
    )  # fmt: skip
    model.fit(*images, epochs=3, verbose=0, callbacks=[callback])
    events = read_events(tmp_path)
    assert set(events) == {
        f"influence/{name}"
        for name in ("gallery", "self_influence", "log10_residual", "log10_largest_residual",
                     "converged_fraction", "passes")
    }  # fmt: skip
    assert all(list(steps) == [2, 3] for steps in events.values())

    width, height, png = events["influence/gallery"][3]
    picture = tf.image.decode_png(png).numpy()
    assert picture.shape[:2] == (int(height), int(width))
    # Opponents are framed in their colour, #b2182b.
    assert (np.abs(picture[..., :3].astype(int) - [0xB2, 0x18, 0x2B]).max(-1) < 8).any()

    exact = np.diag(closed_form(model, data, 0.1))
    buckets = events["influence/self_influence"][3]
    assert buckets[:, 2].sum() == 20
    assert buckets[0, 0] == pytest.approx(exact.min(), rel=1e-3)
    assert buckets[-1, 1] == pytest.approx(exact.max(), rel=1e-3)
    scores = callback.history[3]
    largest = np.log10(scores.residual.max())
    assert events["influence/log10_largest_residual"][3] == pytest.approx(largest, rel=1e-5)
    assert events["influence/log10_residual"][3][-1, 1] == pytest.approx(largest, rel=1e-5)
    assert events["influence/converged_fraction"][3] == 1
    assert events["influence/passes"][3] == pytest.approx(scores.passes)


def test_a_report_is_written_beside_the_scores_and_named(data, tmp_path):
    for package in ("tensorboard", "jinja2", "PIL"):
        pytest.importorskip(package)
    callback = ki.InfluenceCallback(
        data, data, folder=tmp_path / "scores", log_dir=tmp_path / "logs", report=True, damping=0.1
    )
    model, _ = fit(data, callback)
    path = tmp_path / "scores" / "epoch_0005.html"
    page = Page(path)
    closed = truth.SoftmaxRegression(*data, 3, L2)
    losses = closed.losses(truth.get_flat(model))
    assert [t["loss"] for t in page.data["tests"]] == pytest.approx(losses, rel=6e-3)
    text = read_events(tmp_path / "logs")["influence/report"][5].item()
    assert text.decode() == f"`{path}`"
    with pytest.raises(ValueError, match="`report` is written to `folder`"):
        ki.InfluenceCallback(data, data, report=True)


@pytest.mark.slow
def test_the_histogram_takes_a_sample_of_a_dataset(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("keras_influence.callbacks._SAMPLE", 5)
    train = tf.data.Dataset.from_tensor_slices(data).batch(6)
    model, _ = fit(data, ki.InfluenceCallback(data, train, log_dir=tmp_path, damping=0.1))
    buckets = read_events(tmp_path)["influence/self_influence"][5]
    exact = np.diag(closed_form(model, data, 0.1))[[0, 4, 9, 14, 19]]
    assert buckets[:, 2].sum() == 5
    assert buckets[0, 0] == pytest.approx(exact.min(), rel=1e-3)
    assert buckets[-1, 1] == pytest.approx(exact.max(), rel=1e-3)


@pytest.mark.parametrize("package", ["tensorboard", "matplotlib"])
def test_log_dir_says_what_it_needs(package, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"`log_dir` needs {package}: pip install"):
        ki.InfluenceCallback(data, data, log_dir=tmp_path)


def test_self_influence_of_chosen_examples(data):
    model, _ = fit(data)
    found = ki.self_influence(model, data, indices=[7, 2, 7], damping=0.1)
    assert truth.relative_error(found, np.diag(closed_form(model, data, 0.1))[[7, 2, 7]]) < 1e-6
    for indices, error in (([20], ValueError), ([], TypeError), ([0.5], TypeError)):
        with pytest.raises(error, match="`indices`"):
            ki.self_influence(model, data, indices=indices)


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


@pytest.mark.slow_cases("False")
@pytest.mark.parametrize("stopping_first", [True, False])
def test_scores_are_those_of_the_weights_that_fit_leaves(stopping_first, rng):
    """Also where early stopping restores earlier ones, before or after the callback's turn."""
    model = truth.softmax_model(4, 3)
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    # With so much damping the curvature is the identity times it, and scores are g gᵀ.
    callback = ki.InfluenceCallback((x[:2], y[:2]), (x, y), every=1, damping=1e9, verbose=0)
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", patience=2, restore_best_weights=True, min_delta=1.0
    )
    callbacks = [stopping, callback] if stopping_first else [callback, stopping]
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=6, validation_data=(x, y), callbacks=callbacks, verbose=0)
    assert len(callback.history) > 1
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(20)])
    assert truth.relative_error(callback.scores.values * 20e9, g[:2] @ g.T) < 1e-6
    kept = callback.scores
    model.fit(x, y, verbose=0)  # Later training is none of its business.
    assert callback.scores is kept
