"""One number of a whole test set as target: finite differences, and retraining."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.evaluation import leave_one_out
from tests import truth
from tests.truth import L2

CLASSES, DAMPING = 3, 0.1


@pytest.fixture
def train(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, CLASSES, 24)


@pytest.fixture
def test(rng):
    return rng.normal(size=(17, 4)), rng.integers(0, CLASSES, 17)


def gap(x, y, y_pred):
    """Difference of two groups' mean probability of class 1: no sum over examples of its own."""
    group = keras.ops.cast(x[:, 0] > 0, y_pred.dtype)
    first = keras.ops.sum(y_pred[:, 1] * group) / keras.ops.sum(group)
    return first - keras.ops.sum(y_pred[:, 1] * (1 - group)) / keras.ops.sum(1 - group)


def auroc(x, y, y_pred):
    """A smooth surrogate of the AUROC of class 0: each pair of examples counts."""
    score, positive = y_pred[:, 0], keras.ops.cast(y == 0, y_pred.dtype)
    pairs = keras.ops.sigmoid(5 * (score[:, None] - score[None]))
    weight = positive[:, None] * (1 - positive)[None]
    return keras.ops.sum(pairs * weight) / keras.ops.sum(weight)


def calibration(x, y, y_pred):
    """Squared difference of mean confidence and accuracy, as a column."""
    right = keras.ops.sum(y_pred * keras.ops.one_hot(y, CLASSES, dtype=y_pred.dtype), -1)
    return keras.ops.reshape(
        (keras.ops.mean(keras.ops.max(y_pred, -1)) - keras.ops.mean(right)) ** 2, (1,)
    )


def slope_of(function, theta, x, y):
    """∇ of a function of softmax regression's outputs by central differences."""
    x1 = np.hstack([x, np.ones((len(x), 1))])

    def value(theta):
        p = tf.constant(truth.softmax(x1 @ theta.reshape(5, CLASSES)))
        return float(np.squeeze(function(x, y, p)))

    steps = 1e-5 * np.eye(len(theta))
    return np.array([(value(theta + e) - value(theta - e)) / 2e-5 for e in steps])


@pytest.mark.parametrize("function", [gap, auroc, calibration])
def test_one_row_however_the_test_set_is_batched(function, train, test):
    model = truth.softmax_model(4, CLASSES, L2)
    closed = truth.SoftmaxRegression(*train, CLASSES, L2)
    theta = truth.get_flat(model)
    system = closed.hessian(theta) + DAMPING * np.eye(15)
    row = slope_of(function, theta, *test)
    expected = row @ np.linalg.solve(system, closed.example_gradients(theta).T) / 24
    target = ki.WholeSet(function)
    # The last batch of the dataset has one example.
    for given in (test, tf.data.Dataset.from_tensor_slices(test).batch(4)):
        scores = ki.influence(model, given, train, damping=DAMPING, target=target, batch_size=5)
        assert scores.values.shape == (1, 24)
        assert truth.relative_error(scores.values[0], expected) < 1e-6
    assert f"predicted change of {function.__name__}" in repr(scores)


def test_a_fairness_gap_after_retraining(train, test):
    """Leaving out each example in turn, to the minimum by Newton's method, changes the gap so."""
    model = truth.softmax_model(4, CLASSES, 1 / 4)
    closed = truth.SoftmaxRegression(*train, CLASSES, 1 / 4)
    theta = closed.fit(truth.get_flat(model))
    truth.set_flat(model, theta)
    x1 = np.hstack([test[0], np.ones((17, 1))])

    def gap_at(theta):
        return float(gap(*test, tf.constant(truth.softmax(x1 @ theta.reshape(5, CLASSES)))))

    actual = []
    for j in range(24):
        weights = np.ones(24)
        weights[j] = 0
        left = truth.SoftmaxRegression(*train, CLASSES, 1 / 4, weights)
        actual.append(gap_at(left.fit(theta)) - gap_at(theta))
    target = ki.WholeSet(gap)
    predicted = ki.influence(model, test, train, damping=0.0, target=target, method="direct").values
    assert np.corrcoef(predicted[0], actual)[0, 1] > 0.99
    assert abs(np.polyfit(predicted[0], actual, 1)[0] - 1) < 0.1
    # The same by the package's own retraining, which reads the target after each of them.
    found = leave_one_out(model, test, train, indices=[0, 5], target=target, damping=0.0)
    assert np.allclose(found.actual[0], np.array(actual)[[0, 5]], rtol=1e-2, atol=1e-6)


def test_all_questions_take_it(train, test, tmp_path):
    """Each is the same row: one of a mean is that of the mean of the rows."""
    model = truth.softmax_model(4, CLASSES, L2)

    def right(x, y, y_pred):
        return keras.ops.sum(y_pred * keras.ops.one_hot(y, CLASSES, dtype=y_pred.dtype), -1)

    target = ki.WholeSet(lambda *a: keras.ops.mean(right(*a)))
    about = model, test, train
    options = {"damping": DAMPING, "method": "direct"}
    expected = ki.influence(*about, target=right, **options).values.mean(0)
    top = ki.top_influence(*about, 3, target=target, **options).proponents
    assert (top.indices[0] == np.argsort(-expected)[:3]).all()
    groups = [[0, 1], [2, 5, 7]]
    by_group = ki.group_influence(*about, groups, target=target, **options)
    assert np.allclose(by_group, [[expected[g].sum() for g in groups]], rtol=1e-9)
    by_input = ki.input_influence(*about, target=target, **options)
    each = ki.input_influence(*about, target=right, **options)
    assert truth.relative_error(by_input[0], each.mean(0)) < 1e-9
    explained = ki.Explainer(model, train, **options).influence(test, target=target)
    assert truth.relative_error(explained.values[0], expected) < 1e-9


def test_a_report_is_about_single_examples(train, test, tmp_path):
    pytest.importorskip("jinja2")
    model, path = truth.softmax_model(4, CLASSES, L2), tmp_path / "report.html"
    about, target = (test, train), ki.WholeSet(gap)
    with pytest.raises(ValueError, match="a report shows them one by one"):
        ki.write_report(model, path, *about, target=target)
    ki.influence(model, *about, target=target).report(path, train=train)
    assert "“gap”" in path.read_text()


def test_a_store_tells_two_functions_apart(train, test, tmp_path):
    pytest.importorskip("zarr")
    model, folder = truth.softmax_model(4, CLASSES, L2), tmp_path / "scores.zarr"
    about = model, test, train
    first = ki.influence(*about, target=ki.WholeSet(gap), store=folder)
    again = ki.influence(*about, target=ki.WholeSet(gap), store=folder)
    assert np.array_equal(np.asarray(first), np.asarray(again)) and first.n_test == 1
    with pytest.raises(ki.StaleError, match="target"):
        ki.influence(*about, target=ki.WholeSet(auroc), store=folder)


def test_replay_of_a_gap_is_its_derivative_along_the_run(train, test):
    model = truth.softmax_model(4, CLASSES, L2)
    model.optimizer.learning_rate = 0.3
    replay = ki.Replay(*train, batch_size=8)
    model.fit(replay.data, shuffle=False, epochs=3, verbose=0, callbacks=[replay])
    target = ki.WholeSet(gap)
    scores = replay.influence(test, target)
    for j in (0, 11):
        ends = []
        for step in (1e-4, -1e-4):
            weights = np.ones(24)
            weights[j] += step
            ends.append(replay.losses(test, weights, target))
        # At θ_end the gap is what the outputs of the model say.
        slope = (ends[0] - ends[1]) / 2e-4
        assert slope.shape == (1,)
        assert abs(scores.values[0, j] + slope[0]) < 1e-6 * abs(slope[0])
    assert np.isclose(replay.losses(test, target=target)[0], float(gap(*test, model(test[0]))))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, y, y_pred: y_pred[:, 0], "one float for the whole test set"),
        (lambda x, y, y_pred: keras.ops.sum(keras.ops.argmax(y_pred, -1)), "one float"),
        (lambda x, y, y_pred: tf.reduce_mean(tf.cast(y_pred > 0.5, y_pred.dtype)), "no slope"),
        (lambda x, y, y_pred: tf.reduce_mean(y_pred[:0]), "NaN or infinite on the test data"),
        (lambda x, y: 0.0, "failed on the test data"),
    ],
)
def test_what_is_no_number_with_a_slope_is_refused(function, words, train, test):
    model = truth.softmax_model(4, CLASSES, L2)
    with pytest.raises(ValueError, match=words):
        ki.influence(model, test, train, target=ki.WholeSet(function))


def test_it_takes_functions_only():
    with pytest.raises(TypeError, match="`function` should be a function"):
        ki.WholeSet(3)


def test_the_model_stays_as_it_is_where_the_function_fails(train, test):
    model = truth.softmax_model(4, CLASSES, L2)
    before = truth.get_flat(model)

    def fails(x, y, y_pred):
        raise RuntimeError("no")

    with pytest.raises(ValueError, match="failed on the test data: no"):
        ki.influence(model, test, train, target=ki.WholeSet(fails))
    assert (truth.get_flat(model) == before).all()
