"""What a layer, a loss or a target reads may change, though none of the few examples that are looked at shows it."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.questions.conftest import N
from tests.truth import L2

DAMPING, FACTOR, LIMIT = 0.1, 5.0, 1.5
QUIET = {"damping": DAMPING, "method": "direct", "curvature": "hessian", "verbose": 0}


@pytest.fixture
def train(rng):
    """Only examples that are not looked at have label 2, and a first feature beyond the limit."""
    x, y = np.clip(rng.normal(size=(N, 4)), -LIMIT, LIMIT), np.arange(N) % 2
    few = np.linspace(0, N - 1, 8).astype(int)
    rare = np.setdiff1d(np.arange(8, N), few)[::3]
    x[rare, 0], y[rare] = 2 * LIMIT, 2
    return x, y


@pytest.fixture
def test(rng):
    return rng.normal(size=(5, 4)) - LIMIT, np.arange(5) % 2


def closed(train, test, factor=1.0, limit=10.0):
    """The closed form with labels 2 of another weight, or features cut off; and the test gradients."""
    x, y = np.minimum(train[0], limit), train[1]
    regression = truth.SoftmaxRegression(x, y, 3, L2, np.where(y == 2, factor, 1.0))
    return regression, truth.SoftmaxRegression(*test, 3, 0)


def scores(model, train, test, **about):
    regression, asked = closed(train, test, **about)
    theta = truth.get_flat(model)
    g = regression.w[:, None] * regression.example_gradients(theta)
    h = regression.hessian(theta) + DAMPING * np.eye(15)
    return asked.example_gradients(theta) @ np.linalg.solve(h, g.T) / N


class OfRare(keras.losses.Loss):
    """Cross-entropy, in which label 2 counts `factor` times as much."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def call(self, y, y_pred):
        return _times(self.factor, y, y_pred)


class Cut(keras.layers.Layer):
    limit = 10.0

    def call(self, x):
        return keras.ops.minimum(x, self.limit)


def _times(factor, y, y_pred):
    losses = keras.losses.sparse_categorical_crossentropy(y, y_pred)
    return keras.ops.where(keras.ops.equal(y, 2), factor, 1.0) * losses


def model_of(loss="sparse_categorical_crossentropy", front=None):
    model = truth.softmax_model.fresh(4, 3, L2)
    if front is not None:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, model.layers[-1](front(inputs)))
    model.compile("sgd", loss)
    return model


def _of_a_loss():
    loss = OfRare()
    return model_of(loss), lambda: setattr(loss, "factor", FACTOR), {"factor": FACTOR}


def _of_a_list():
    factors = [1.0]

    def loss(y, y_pred):
        return _times(factors[0], y, y_pred)

    return model_of(loss), lambda: factors.__setitem__(0, FACTOR), {"factor": FACTOR}


def _of_an_object():
    class Holder:
        factor = 1.0

    holder = Holder()

    def loss(y, y_pred):
        return _times(holder.factor, y, y_pred)

    return model_of(loss), lambda: setattr(holder, "factor", FACTOR), {"factor": FACTOR}


def _of_a_variable(kind=tf.Variable):
    variable = kind(1.0, dtype="float64")

    def loss(y, y_pred):
        return _times(keras.ops.convert_to_tensor(variable), y, y_pred)

    return model_of(loss), lambda: variable.assign(FACTOR), {"factor": FACTOR}


def _of_a_keras_variable():
    return _of_a_variable(keras.Variable)


def _of_a_layer():
    cut = Cut()
    return model_of(front=cut), lambda: setattr(cut, "limit", LIMIT), {"limit": LIMIT}


CASES = [
    _of_a_loss,
    _of_a_list,
    _of_an_object,
    _of_a_variable,
    _of_a_keras_variable,
    _of_a_layer,
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda f: f.__name__)


@pytest.mark.each_case
@cases
def test_a_change_is_found_in_all_answers(case, train, test):
    model, change, about = case()
    found = ki.influence(model, test, train, **QUIET).values
    assert truth.relative_error(found, scores(model, train, test)) < 1e-9
    change()
    h = closed(train, test, **about)[0].hessian(truth.get_flat(model))
    assert truth.relative_error(ki.hvp(model, np.eye(15), train), h) < 1e-9
    expected = scores(model, train, test, **about)
    found = ki.influence(model, test, train, **QUIET).values
    assert truth.relative_error(found, expected) < 1e-9


@pytest.mark.each_case
@pytest.mark.parametrize("kind", ["object", "file", "store"])
@cases
def test_what_was_made_before_it_is_refused(case, kind, train, test, tmp_path):
    if kind == "store":
        pytest.importorskip("zarr")
    model, change, about = case()
    explainer = ki.Explainer(model, train, **QUIET)
    explainer.save(tmp_path / "factor.npz")
    asked = {
        "object": lambda: explainer.influence(test),
        "file": lambda: ki.Explainer.load(model, train, tmp_path / "factor.npz").influence(test),
        "store": lambda: ki.influence(model, test, train, store=tmp_path / "scores.zarr", **QUIET),
    }[kind]
    for _ in range(2):
        found = np.asarray(asked().values)
        assert truth.relative_error(found, scores(model, train, test)) < 1e-9
    change()
    words = "variable" if "variable" in case.__name__ else next(iter(about))
    if case is _of_a_list:
        words = "factors"
    with pytest.raises(ki.StaleError, match=f"{words}.*has changed since"):
        asked()


class Branch(keras.layers.Layer):
    stop = False

    def call(self, x):
        return keras.ops.stop_gradient(x) if self.stop else x


def test_a_flag_that_changes_gradients_and_no_value(train, test):
    inputs, branch = keras.Input((4,)), Branch()
    hidden = keras.layers.Dense(4, "tanh")
    outputs = keras.layers.Dense(3, "softmax")(branch(hidden(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    options = {**QUIET, "curvature": "gauss_newton"}
    before = ki.influence(model, test, train, **options).values
    branch.stop = True
    # The head is a softmax regression of what is there before it.
    head = types.SimpleNamespace(trainable_variables=model.trainable_variables[2:])
    features = [(np.asarray(hidden(x)), y) for x, y in (train, test)]
    regression, asked = (truth.SoftmaxRegression(*part, 3, 0.0) for part in features)
    theta = truth.get_flat(head)
    h = regression.hessian(theta) + DAMPING * np.eye(15)
    g = regression.example_gradients(theta)
    expected = asked.example_gradients(theta) @ np.linalg.solve(h, g.T) / N
    found = ki.influence(model, test, train, **options).values
    assert truth.relative_error(found, expected) < 1e-9
    assert truth.relative_error(before, expected) > 1e-2


def _taking(labels):
    def chosen(y):
        return keras.ops.equal(y, labels)

    return chosen


def _another(labels):
    def chosen(y):
        return keras.ops.equal(y, 0 * y + labels)

    return chosen


def test_a_function_that_a_loss_calls(train, test):
    """Of the same name and with the same values at hand."""
    functions = {"chosen": _taking(2)}

    def loss(y, y_pred):
        losses = keras.losses.sparse_categorical_crossentropy(y, y_pred)
        return keras.ops.where(functions["chosen"](y), FACTOR, 1.0) * losses

    explainer = ki.Explainer(model_of(loss), train, **QUIET)
    explainer.influence(test)
    functions["chosen"] = _another(2)
    with pytest.raises(ki.StaleError, match="a function that the loss calls has changed"):
        explainer.influence(test)


def _target_of(factors, calls):
    def target(x, y, y_pred):
        calls.append(1)
        return keras.ops.where(keras.ops.equal(y, 2), factors[0], 1.0) * y_pred[:, 0]

    return target


def test_a_list_that_a_target_reads(train, tmp_path):
    """The calls that it counts are no change."""
    pytest.importorskip("zarr")
    model, factors = model_of(), [1.0]
    asked = {"target": _target_of(factors, []), "store": tmp_path / "scores.zarr", **QUIET}
    plain = {**asked, "store": None}
    for _ in range(2):
        before = np.asarray(ki.influence(model, train, train, **asked).values)
    factors[0] = FACTOR
    expected = np.where(train[1] == 2, FACTOR, 1.0)[:, None] * before
    found = ki.influence(model, train, train, **plain).values
    assert truth.relative_error(found, expected) < 1e-9
    with pytest.raises(ki.StaleError, match="target.factors`, which `target` reads, has changed"):
        ki.influence(model, train, train, **asked)


class Counting(keras.losses.Loss):
    """It notes in each of its calls that it was called, in Python and in a variable."""

    def __init__(self):
        super().__init__()
        self.calls, self.last, self.steps = [], None, tf.Variable(0.0, dtype="float64")

    def call(self, y, y_pred):
        self.calls.append(1)
        self.steps.assign_add(1.0)
        self.last = y_pred + 0 * self.steps
        return keras.losses.sparse_categorical_crossentropy(y, self.last)


def test_what_a_mere_call_changes_makes_nothing_stale(train, test, tmp_path):
    model = model_of(Counting())
    explainer = ki.Explainer(model, train, **QUIET)
    explainer.save(tmp_path / "factor.npz")
    expected = scores(model, train, test)
    for _ in range(2):
        model.evaluate(*train, verbose=0)
        loaded = ki.Explainer.load(model, train, tmp_path / "factor.npz", verbose=0)
        for one in (explainer, loaded):
            assert truth.relative_error(one.influence(test).values, expected) < 1e-9
    again = model_of(Counting())
    again.set_weights(model.get_weights())
    loaded = ki.Explainer.load(again, train, tmp_path / "factor.npz", verbose=0)
    assert truth.relative_error(loaded.influence(test).values, expected) < 1e-9
