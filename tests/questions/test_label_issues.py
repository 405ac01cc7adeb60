"""find_label_issues against closed forms, retraining, and labels that were planted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.evaluation import plant_wrong_labels
from tests import truth
from tests.questions.models import example_gradients, gauss_newton, network
from tests.truth import L2

DAMPING = 0.01


@pytest.fixture
def blobs(rng):
    y = rng.integers(0, 3, 60)
    return np.eye(3)[y] + 0.6 * rng.normal(size=(60, 3)), y


def at_minimum(x, y, classes=3):
    """A softmax regression at its exact minimum, in closed form and as a model."""
    closed = truth.SoftmaxRegression(x, y, classes, L2)
    theta = closed.fit(np.zeros((x.shape[1] + 1) * classes))
    model = truth.softmax_model(x.shape[1], classes, L2)
    truth.set_flat(model, theta)
    return closed, theta, model


def in_order(issues):
    """The columns by position in the data."""
    back = np.argsort(issues.index)
    return {name: column[back] for name, column in vars(issues).items() if name != "by"}


def closed_measures(closed, theta, x, y, damping):
    """The three measures, and the other class, by dense algebra."""
    p = truth.softmax(closed.x @ theta.reshape(closed.penalty.shape))
    other = np.where(np.eye(3)[y] > 0, -1, p).argmax(1)
    relabelled = truth.SoftmaxRegression(x, other, 3, L2)
    g, g_other = closed.example_gradients(theta), relabelled.example_gradients(theta)
    s = np.linalg.solve(closed.hessian(theta) + damping * np.eye(len(theta)), g.T).T
    each = np.arange(len(y))
    margin = np.log(p[each, y]) - np.log(p[each, other]) + ((g_other - g) * s).sum(1) / len(y)
    return {
        "self_influence": (g * s).sum(1),
        "loss": -np.log(p[each, y]),
        "margin": margin,
    }, other


def test_the_measures_are_the_closed_forms(blobs):
    closed, theta, model = at_minimum(*blobs)
    options = {"by": "self_influence", "method": ki.CG(tol=1e-10), "damping": DAMPING}
    issues = ki.find_label_issues(model, blobs, verbose=0, **options)
    expected, other = closed_measures(closed, theta, *blobs, DAMPING)
    found = in_order(issues)
    for name, values in expected.items():
        assert truth.relative_error(found[name], values) < 1e-6
    assert (found["given"] == blobs[1]).all()
    assert (found["suggested"] == other).all()
    p = truth.softmax(closed.x @ theta.reshape(4, 3))
    assert (found["predicted"] == p.argmax(1)).all()
    assert (issues.index == np.argsort(-expected["self_influence"])).all()
    explainer = ki.Explainer(model, blobs, method="direct", damping=DAMPING, verbose=0)
    made_once = in_order(explainer.find_label_issues())
    assert truth.relative_error(made_once["margin"], expected["margin"]) < 1e-6
    for by, sign in (("loss", -1), ("margin", 1)):
        ordered = ki.find_label_issues(
            model, blobs, by=by, method="direct", damping=DAMPING, verbose=0
        )
        assert (ordered.index == np.argsort(sign * expected[by])).all()
        assert ordered.by == by


def test_the_margin_is_that_of_a_model_trained_without_the_example(blobs):
    x, y = blobs
    closed, theta, model = at_minimum(x, y)
    # The same shift of all biases changes nothing: without damping H is singular.
    found = ki.find_label_issues(model, blobs, method="direct", damping=1e-8, verbose=0)
    issues = in_order(found)
    actual, before = [], []
    for i in range(len(y)):
        weights = np.ones(len(y))
        weights[i] = 0
        left_out = truth.SoftmaxRegression(x, y, 3, L2, weights).fit(theta)
        for at, values in ((left_out, actual), (theta, before)):
            logits = closed.x[i] @ at.reshape(4, 3)
            values.append(logits[y[i]] - logits[issues["suggested"][i]])
    actual, before = np.array(actual), np.array(before)
    change, predicted = actual - before, issues["margin"] - before
    assert np.corrcoef(change, predicted)[0, 1] > 0.99
    assert (change * predicted).sum() / (predicted**2).sum() == pytest.approx(1, abs=0.1)
    # Far closer to the margin without the example than the margin with it is.
    assert np.abs(actual - issues["margin"]).max() < 0.2 * np.abs(change).max()


def test_other_forms_of_labels_and_data_are_the_same_issues(blobs):
    x, y = blobs
    _, theta, model = at_minimum(x, y)
    options = {"method": "direct", "damping": DAMPING, "verbose": 0}
    expected = ki.find_label_issues(model, blobs, **options)
    batched = ki.find_label_issues(
        model, tf.data.Dataset.from_tensor_slices(blobs).batch(7), **options
    )
    one_hot = truth.softmax_model(3, 3, L2)
    one_hot.compile("sgd", "categorical_crossentropy")
    truth.set_flat(one_hot, theta)
    for issues in (batched, ki.find_label_issues(one_hot, (x, np.eye(3)[y]), **options)):
        assert (issues.index == expected.index).all()
        assert (issues.suggested == expected.suggested).all()
        assert issues.margin == pytest.approx(expected.margin)


def test_two_classes_of_one_output_by_the_closed_form(rng):
    """Logistic regression: gradients (p - y) x, the other label is 1 - y."""
    x = rng.normal(size=(40, 2))
    y = (x[:, 0] > 0).astype(float)
    y[3] = 1 - y[3]
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", use_bias=False)(inputs))
    model.compile("sgd", "binary_crossentropy")
    w = np.array([2.0, 0.3])
    model.set_weights([w[:, None]])
    issues = ki.find_label_issues(model, (x, y[:, None]), method="direct", damping=0.1, verbose=0)
    p = 1 / (1 + np.exp(-x @ w))
    h = (x.T * p * (1 - p)) @ x / 40 + 0.1 * np.eye(2)
    leverage = np.einsum("ij,ij->i", x, np.linalg.solve(h, x.T).T)
    sign = 2 * y - 1
    # g = (p - y) x, and with the other label (p - (1 - y)) x: their difference is sign · x.
    margin = sign * (x @ w) + sign * (p - y) * leverage / 40
    found = in_order(issues)
    assert found["self_influence"] == pytest.approx((p - y) ** 2 * leverage, rel=1e-5)
    assert found["margin"] == pytest.approx(margin, rel=1e-5)
    assert (found["suggested"] == 1 - y).all()
    assert 3 in issues.index[:4]


def test_predictions_of_other_models_are_taken_by_hand(rng):
    y = np.array([0, 1, 2])
    x = rng.normal(size=(3, 3))
    _, _, model = at_minimum(x, y)
    p = np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.25, 0.2, 0.55]])
    issues = ki.find_label_issues(model, (x, y), by="margin", predictions=p, verbose=0)
    assert issues.index.tolist() == [0, 1, 2]
    assert issues.suggested.tolist() == [2, 0, 0]
    assert issues.predicted.tolist() == [2, 1, 2]
    assert issues.loss == pytest.approx(-np.log([0.1, 0.6, 0.55]))
    assert issues.margin == pytest.approx(np.log([1 / 7, 2, 2.2]))
    own = ki.self_influence(model, (x, y), verbose=0)
    assert issues.self_influence == pytest.approx(own)
    for bad in (p[:2], 2 * p, p - 0.2):
        with pytest.raises(ValueError, match="`predictions` should be probabilities"):
            ki.find_label_issues(model, (x, y), predictions=bad, verbose=0)


def test_planted_labels_of_digits_are_found_and_mended():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = load_digits()
    x, y = digits.data[:300] / 16, digits.target[:300]
    labels, wrong = plant_wrong_labels(y, 0.1, seed=0)
    _, _, model = at_minimum(x, labels, 10)
    issues = ki.find_label_issues(model, (x, labels), damping=1e-3, verbose=0)
    first = issues.index[: wrong.sum()]
    assert wrong[first].mean() > 0.8
    hits = wrong[first]
    assert (issues.suggested[: len(first)][hits] == y[first][hits]).mean() > 0.8


def test_the_result_explains_itself_and_is_a_frame(blobs):
    pandas = pytest.importorskip("pandas")
    _, _, model = at_minimum(*blobs)
    issues = ki.InfluenceModel.from_model(model).find_label_issues(blobs, verbose=0)
    frame = issues.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [
        *("index", "given", "suggested", "predicted", "self_influence", "loss", "margin")
    ]
    assert (frame["index"] == issues.index).all()
    assert len(issues) == 60
    assert "60 training examples, the most suspicious first, by margin" in repr(issues)


def test_what_is_no_classifier_is_refused(blobs, ridge):
    model, train, _ = ridge
    with pytest.raises(ValueError, match="labels of a classifier"):
        ki.find_label_issues(model, train, verbose=0)
    _, _, softmax = at_minimum(*blobs)
    with pytest.raises(ValueError, match="`by` should be one of"):
        ki.find_label_issues(softmax, blobs, by="margins")
    with pytest.raises(TypeError, match="`dampning` is an unexpected"):
        ki.find_label_issues(softmax, blobs, dampning=1)


def test_left_out_of_a_sum_an_example_takes_all_of_its_loss(rng):
    """log p_y - log p_c + (g_c - g_y)ᵀ A⁻¹ g_y with A = Σ Jᵀ (diag p - p pᵀ) J + λI, in NumPy."""
    model = network.fresh()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    x, y = rng.normal(size=(15, 4)), rng.integers(0, 3, 15)
    issues = in_order(ki.find_label_issues(model, (x, y), damping=0.5, method="direct", verbose=0))
    p, each = model.predict(x, verbose=0), np.arange(15)
    other = np.where(np.eye(3)[y] == 1, -1, p).argmax(1)
    own, cross = (example_gradients(model, x, labels) for labels in (y, other))
    a = 15 * gauss_newton(model, x) + 0.5 * np.eye(model.count_params())
    moved = np.einsum("ij,ij->i", cross - own, np.linalg.solve(a, own.T).T)
    expected = np.log(p[each, y]) - np.log(p[each, other]) + moved
    assert issues["suggested"].tolist() == other.tolist()
    assert truth.relative_error(issues["margin"], expected) < 1e-6


@pytest.mark.parametrize("labels", [(-1, 1), (0, 1)])
def test_a_margin_between_0_and_1_is_no_probability(labels, rng):
    """Of hinge losses the sign decides, also where all outputs happen to look like probabilities."""
    x = rng.uniform(0.1, 0.9, (20, 1))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    model.compile("sgd", "squared_hinge")
    y = np.asarray(labels)[rng.integers(0, 2, 20)]
    assert (ki.find_label_issues(model, (x, y), verbose=0).predicted == 1).all()
