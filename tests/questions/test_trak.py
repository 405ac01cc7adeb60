"""TRAK against its closed form, with gradients taken one at a time and the projection written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.conftest import set_precision

CLASSES, N = 3, 24
layers = keras.layers


@pytest.fixture(params=["dense"])
def net(request, rng):
    """A model that returns logits, training and test data."""
    shape, body = {
        "dense": ((4,), [layers.Dense(6, "tanh")]),
        "conv": ((5, 5, 1), [layers.Conv2D(2, 3, activation="tanh"), layers.Flatten()]),
        "rnn": ((3, 2), [layers.SimpleRNN(4)]),
    }[request.param]
    model = keras.Sequential([keras.Input(shape), *body, layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train = rng.normal(size=(N, *shape)), rng.integers(0, CLASSES, N)
    return model, train, (rng.normal(size=(5, *shape)), rng.integers(0, CLASSES, 5))


def margin(x, y, y_pred):
    """log(p / (1 - p)) of the right class from logits."""
    right = keras.ops.one_hot(y, CLASSES, dtype=y_pred.dtype)
    others = keras.ops.where(right > 0, -1e9, y_pred)
    return keras.ops.sum(right * y_pred, -1) - keras.ops.logsumexp(others, axis=-1)


def gradients(model, function, x, y):
    """(n, p) gradients of a function of single examples, one tape each."""
    rows = []
    for i in range(len(y)):
        with tf.GradientTape() as tape:
            value = function(x[i : i + 1], y[i : i + 1], model(x[i : i + 1]))[0]
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([g.numpy().ravel() for g in found]))
    return np.array(rows)


def closed_form(model, train, test, projection, damping=0.0):
    """Minus the TRAK score of the margin: -φ(f_i)ᵀ (ΦᵀΦ + nλI)⁻¹ φ(f_j) (1 - p_j)."""
    features = gradients(model, margin, *train) @ projection.T
    asked = gradients(model, margin, *test) @ projection.T
    p = truth.softmax(model(train[0]).numpy())[np.arange(N), train[1]]
    matrix = features.T @ features + N * damping * np.eye(len(projection))
    return -asked @ np.linalg.solve(matrix, features.T) * (1 - p)


def projection_of(model, dim, seed):
    p = len(truth.get_flat(model))
    rows = [tf.random.stateless_normal((p,), (seed, d), dtype="float64") for d in range(dim)]
    return np.stack(rows) / np.sqrt(dim)


@pytest.mark.slow_cases("rnn")
@pytest.mark.parametrize("net", ["dense", "conv", "rnn"], indirect=True)
def test_it_is_the_closed_form(net):
    model, train, test = net
    projection = projection_of(model, 10, seed=3)
    options = {"target": margin, "dim": 10, "seed": 3}
    expected = closed_form(model, train, test, projection)
    for more in ({}, {"output": margin}, {"batch_size": 7}):
        scores = ki.trak_influence(model, test, train, **options, **more)
        assert truth.relative_error(scores.values, expected) < 1e-7
    assert "to 10 dimensions" in repr(scores) and scores.details["saturated"] == 0
    damped = ki.trak_influence(model, test, train, damping=0.1, **options)
    expected = closed_form(model, train, test, projection, 0.1)
    assert truth.relative_error(damped.values, expected) < 1e-7


def test_from_p_dimensions_on_the_gradients_are_taken_as_they_are(net):
    model, train, test = net
    p = len(truth.get_flat(model))
    scores = ki.trak_influence(model, test, train, target=margin, dim=1000, damping=0.1)
    expected = closed_form(model, train, test, np.eye(p), 0.1)
    assert truth.relative_error(scores.values, expected) < 1e-7
    assert scores.details["dim"] == p


def test_rows_come_in_blocks_as_memory_allows(net, monkeypatch):
    model, train, test = net
    options = {"dim": 10, "target": margin}
    whole = ki.trak_influence(model, test, train, **options)
    # Three rows at a time.
    monkeypatch.setattr("keras_influence.questions.trak._TOGETHER", 3)
    parts = ki.trak_influence(model, test, train, **options)
    assert (whole.passes, parts.passes) == (1, 4)
    assert truth.relative_error(parts.values, closed_form(*net, projection_of(model, 10, 0))) < 1e-7


def test_the_test_loss_is_explained_by_default(net):
    """∇ℓ = -(1 - p) ∇f."""
    model, train, test = net
    p = truth.softmax(model(test[0]).numpy())[np.arange(5), test[1]]
    expected = -(1 - p)[:, None] * closed_form(*net, projection_of(model, 10, 0))
    scores = ki.trak_influence(model, test, train, dim=10)
    assert truth.relative_error(scores.values, expected) < 1e-7
    assert scores.target == "test loss"


def test_a_list_of_models_has_projections_of_its_own(rng):
    train = rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)
    test = rng.normal(size=(2, 4)), rng.integers(0, CLASSES, 2)
    models = []
    for _ in range(2):
        models.append(keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES)]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        models[-1].compile("sgd", loss)
    parts = [
        closed_form(model, train, test, projection_of(model, 5, 7 + k))
        for k, model in enumerate(models)
    ]
    scores = ki.trak_influence(models, test, train, dim=5, seed=7, target=margin)
    assert truth.relative_error(scores.values, np.mean(parts, 0)) < 1e-7
    assert truth.relative_error(2 * scores.error, abs(parts[0] - parts[1])) < 1e-7


def test_checkpoints_are_averaged_and_the_model_stays_as_it_is(rng):
    train = rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)
    test = rng.normal(size=(2, 4)), rng.integers(0, CLASSES, 2)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    tracin, path = ki.TracIn(), []
    kept = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: path.append(truth.get_flat(model))
    )
    model.fit(*train, epochs=2, verbose=0, callbacks=[tracin, kept])
    truth.set_flat(model, path[1] + 1)
    scores = ki.trak_influence(model, test, train, dim=5, seed=7, target=margin, tracin=tracin)
    assert (truth.get_flat(model) == path[1] + 1).all()
    parts = []
    for k, theta in enumerate(path):
        truth.set_flat(model, theta)
        parts.append(closed_form(model, train, test, projection_of(model, 5, 7 + k)))
    assert truth.relative_error(scores.values, np.mean(parts, 0)) < 1e-7
    with pytest.raises(ValueError, match="`tracin` is for one model"):
        ki.trak_influence([model, model], test, train, tracin=tracin)


def test_squared_errors_need_an_output(ridge):
    """Of ridge regression by its outputs with all 4 dimensions: H without the penalty is 2 XᵀX / n."""
    model, train, test = ridge
    with pytest.raises(ValueError, match="`output` is needed where the loss is no cross-entropy"):
        ki.trak_influence(model, test, train, dim=4)
    output = lambda x, y, y_pred: y_pred[:, 0]
    scores = ki.trak_influence(model, test, train, dim=4, output=output)
    theta = truth.get_flat(model)
    rows, asked = (2 * (x @ theta - y[:, 0])[:, None] * x for x, y in (train, test))
    expected = asked @ np.linalg.solve(train[0].T @ train[0], rows.T)
    assert truth.relative_error(scores.values, expected) < 1e-7


@pytest.mark.parametrize(
    ("output", "error", "says"),
    [
        ("logit", TypeError, "`output` should be a function"),
        (lambda x, y, y_pred: y_pred["a"], ValueError, "`output` failed on the training data"),
        (lambda x, y, y_pred: y_pred, ValueError, "`output` should return floats of shape"),
    ],
)
def test_a_bad_output_is_refused_by_its_name(output, error, says, rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    data = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    with pytest.raises(error, match=says):
        ki.trak_influence(model, data, data, dim=2, output=output)


def test_directions_that_no_data_have_are_left_out(rng):
    """Two columns are one: XᵀX has a pseudo-inverse only, and rounding may not make it more."""
    set_precision("float32")
    x = rng.normal(size=(N, 3)).astype("float32")
    x, y = np.hstack([x, 0.3 * x[:, :1] + 0.7 * x[:, 1:2]]), rng.normal(size=N).astype("float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    output = lambda x, y, y_pred: y_pred[:, 0]
    found = ki.trak_influence(model, (x[:5], y[:5]), (x, y), dim=4, output=output).values
    x = x.astype(float)
    rows = 2 * (x @ truth.get_flat(model) - y)[:, None] * x
    expected = rows[:5] @ np.linalg.pinv(x.T @ x, rcond=1e-6) @ rows.T
    assert truth.relative_error(found, expected) < 1e-4


def test_what_it_cannot_do_is_refused(rng):
    model = truth.softmax_model(4, CLASSES)
    train = rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)
    with pytest.raises(ValueError, match="`dim`=15 dimensions are too many for 8"):
        ki.trak_influence(model, train, (train[0][:8], train[1][:8]), dim=15)
    with pytest.raises(ValueError, match="where training examples have weights"):
        ki.trak_influence(model, train, (*train, np.ones(N)), dim=5)
    with pytest.raises(TypeError, match="`dim` should be an integer"):
        ki.trak_influence(model, train, train, dim=2.5)


def test_an_example_without_a_loss_has_no_log_odds(rng):
    """Its row is 0, and is counted; the others are as they would be without it in Φ."""
    x, y = rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y[0] = int(np.argmax(model(x[:1] * 1e4)[0]))
    x[0] *= 1e4
    scores = ki.trak_influence(model, (x[:3], y[:3]), (x, y), dim=5, target=margin)
    assert scores.details["saturated"] == 1
    projection = projection_of(model, 5, 0)
    features = gradients(model, margin, x[1:], y[1:]) @ projection.T
    asked = gradients(model, margin, x[:3], y[:3]) @ projection.T
    p = truth.softmax(model(x).numpy())[np.arange(N), y][1:]
    expected = -asked @ np.linalg.solve(features.T @ features, features.T) * (1 - p)
    assert truth.relative_error(scores.values[:, 1:], expected) < 1e-7
    assert (scores.values[:, 0] == 0).all()


def log_odds(x, y, y_pred):
    """log(p / (1 - p)) of the right class from probabilities."""
    p = keras.ops.sum(keras.ops.cast(y > 0.5, y_pred.dtype) * y_pred, -1)
    return keras.ops.log(p) - keras.ops.log(1 - p)


@pytest.mark.parametrize(
    ("smoothing", "weights", "share", "says"),
    [
        (0.2, None, 1.0, "labels are smoothed"),
        (0.0, [0.5], 1.0, "losses have weights"),
        (0.0, None, 0.8, "labels are shared"),
        (0.0, [1.0], 1.0, ""),
    ],
)
def test_what_is_no_likelihood_needs_an_output(smoothing, weights, share, says, rng):
    """With one, scores are the closed form, of the loss as it is."""
    x = rng.normal(size=(N, 4))
    y = share * np.eye(CLASSES)[rng.integers(0, CLASSES, N)] + (1 - share) / CLASSES
    model = keras.Sequential([keras.Input((4,)), layers.Dense(CLASSES, "softmax")])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    model.compile("sgd", loss, loss_weights=weights)
    options = {"dim": 5, "target": log_odds}
    if says:
        with pytest.raises(ValueError, match=f"`output` is needed where {says}"):
            ki.trak_influence(model, (x, y), (x, y), **options)
        options["output"] = log_odds
    found = ki.trak_influence(model, (x, y), (x, y), **options)
    projection, whole = projection_of(model, 5, 0), (weights or [1.0])[0]
    of_loss = lambda x, y, y_pred: (
        whole * keras.losses.categorical_crossentropy(y, y_pred, label_smoothing=smoothing)
    )
    features = gradients(model, log_odds, x, y) @ projection.T
    slopes = gradients(model, of_loss, x, y) @ projection.T
    expected = features @ np.linalg.solve(features.T @ features, slopes.T)
    assert truth.relative_error(found.values, expected) < 1e-7
