"""What was computed for a system serves the next question, and no other system's."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.data import batches
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.solvers import Direct, cg, patience
from keras_influence.questions import kept
from tests import truth
from tests.questions.conftest import N
from tests.truth import L2

DAMPING = 0.1
QUIET = {"damping": DAMPING, "verbose": 0}


@pytest.fixture
def made(monkeypatch):
    """The matrices that were factorised so far."""
    found, factorise = [], Direct.factorise

    def counted(self, curvature, damping):
        found.append(damping)
        return factorise(self, curvature, damping)

    monkeypatch.setattr(Direct, "factorise", counted)
    return found


def model_of(l2=L2):
    return truth.softmax_model(4, 3, l2)


def ask(model, test, train, **options):
    return ki.influence(model, test, train, **{"method": "direct", **QUIET, **options}).values


def expected(
    model, test, train, l2=L2, weights=None, chosen=slice(None), factor=1.0, damping=DAMPING
):
    """In closed form; `factor` is that of the losses."""
    theta = truth.get_flat(model)
    closed = truth.SoftmaxRegression(*train, 3, l2, weights)
    g = factor * closed.w[:, None] * closed.example_gradients(theta)
    g_test = factor * truth.SoftmaxRegression(*test, 3, 0).example_gradients(theta)
    without = truth.SoftmaxRegression(*train, 3, 0.0, weights).hessian(theta)
    h = (factor - 1) * without + closed.hessian(theta) + damping * np.eye(15)
    return g_test[:, chosen] @ np.linalg.solve(h[chosen, chosen], g[:, chosen].T) / N


def test_another_question_about_the_same_system_computes_it_no_more(train, test, made):
    model = model_of()
    other = test[0][::-1] + 1, test[1]
    for asked in (test, other):
        found = ask(model, asked, train)
        assert truth.relative_error(found, expected(model, asked, train)) < 1e-9
    own = ki.self_influence(model, train, method="direct", **QUIET)
    assert truth.relative_error(own, N * np.diag(expected(model, train, train))) < 1e-9
    assert len(made) == 1


@pytest.mark.parametrize(
    "method",
    [ki.EKFAC(), ki.TwoLevel(), ki.Nystrom(15), ki.CG(preconditioner=ki.TwoLevel())],
    ids=lambda m: type(m).__name__,
)
def test_answers_are_the_same_bits_as_if_nothing_were_kept(method, train, test):
    model = model_of()
    about = {"method": method, "curvature": "gauss_newton"}
    first = ask(model, test, train, **about)
    assert kept._last
    again = ask(model, test, train, **about)
    kept.forget()
    anew = ask(model, test, train, **about)
    assert np.array_equal(again, first) and np.array_equal(anew, first)


def test_a_sketch_made_on_the_way_is_there_from_the_start_next_time(train, test, monkeypatch):
    monkeypatch.setattr(cg, "_RANK", 4)
    monkeypatch.setattr(patience, "_DENSE", 0)
    model, method = model_of(), ki.CG(tol=1e-10, preconditioner="nystrom")
    train[0][:] *= [10.0, 3.0, 1.0, 0.1]  # Hard enough for it to be made.
    about = {**QUIET, "damping": 1e-4, "curvature": "gauss_newton", "method": method}
    passes = []
    for _ in range(2):
        scores = ki.influence(model, test, train, **about)
        exact = expected(model, test, train, damping=1e-4)
        assert truth.relative_error(scores.values, exact) < 1e-7
        passes.append(scores.passes)
    assert isinstance(kept._last[0].factor, LowRank)
    assert passes[1] < passes[0]


class Scaled:
    """A loss with an attribute."""

    factor = 1.0

    def __call__(self, y, y_pred):
        return self.factor * keras.losses.sparse_categorical_crossentropy(y, y_pred)


def _weights(model, loss, train):
    model.trainable_variables[0].assign_add(np.full((4, 3), 0.3) * np.eye(4, 3))
    return {}, {}


def _data_in_place(model, loss, train):
    train[0][7, 2] += 1e-3
    return {}, {}


def _labels_in_place(model, loss, train):
    train[1][7] = (train[1][7] + 1) % 3
    return {}, {}


def _class_weight(model, loss, train):
    weights = np.array([1.0, 2.0, 0.5])
    options = {"class_weight": dict(enumerate(weights))}
    return options, {"weights": weights[train[1]]}


def _regulariser(model, loss, train):
    model.layers[-1].kernel_regularizer.l2 = 3 * L2
    return {}, {"l2": 3 * L2}


def _loss(model, loss, train):
    loss.factor = 1.01
    return {}, {"factor": 1.01}


def _compiled(model, loss, train):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), loss_weights=[2.0])
    return {}, {"factor": 2.0}


def _variables(model, loss, train):
    return {"variables": model.trainable_variables[:1]}, {"chosen": slice(12)}


CHANGES = [
    _weights,
    _data_in_place,
    _labels_in_place,
    _class_weight,
    _regulariser,
    _loss,
    _compiled,
    _variables,
]


@pytest.mark.slow_cases("_class_weight", "_compiled", "_regulariser")
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_of_what_has_changed_it_is_computed_anew(change, train, test, made):
    model, loss = model_of(), Scaled()
    model.compile("sgd", loss)
    found = ask(model, test, train)
    assert truth.relative_error(found, expected(model, test, train)) < 1e-9
    options, about = change(model, loss, train)
    found = ask(model, test, train, **options)
    assert truth.relative_error(found, expected(model, test, train, **about)) < 1e-9
    assert len(made) == 2


def test_of_weights_that_a_few_examples_say_nothing_of_too(train, test, made):
    """A feature that is there in one example only, which is none of those that are looked at."""
    model = model_of(l2=0.0)
    train[0][:, 2] = 0
    train[0][1, 2] = 3.0
    for step in (0.0, 1.0):
        model.trainable_variables[0].assign_add(step * np.eye(4)[:, 2:3] * [1.0, 0.0, -1.0])
        found = ask(model, test, train)
        assert truth.relative_error(found, expected(model, test, train, l2=0.0)) < 1e-9
    assert len(made) == 2


def test_weights_that_change_meanwhile_are_those_of_no_system(train, test, made, monkeypatch):
    """As where another thread trains the model."""
    model, factorise = model_of(), Direct.factorise
    theta = truth.get_flat(model)

    def disturbed(self, curvature, damping):
        truth.set_flat(model, theta + 1)
        return factorise(self, curvature, damping)

    with monkeypatch.context() as patch:
        patch.setattr(Direct, "factorise", disturbed)
        ask(model, test, train)
    truth.set_flat(model, theta)
    found = ask(model, test, train)
    assert truth.relative_error(found, expected(model, test, train)) < 1e-9
    assert len(made) == 2


def test_another_damping_is_another_system(train, test, made):
    model = model_of()
    ask(model, test, train, damping=1.0)
    found = ask(model, test, train)
    assert truth.relative_error(found, expected(model, test, train)) < 1e-9
    assert made == [1.0, DAMPING]


def test_a_plan_that_made_way_for_another_is_not_what_is_kept(train, made):
    """Of a loss that is not convex in the outputs there is no Gauss-Newton matrix."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    model.compile("sgd", lambda y, p: keras.ops.sin(y[:, 0] - p[:, 0]))
    y = train[1].astype(float)
    for _ in range(2):
        with pytest.warns(ki.CurvatureWarning):
            found = ask(model, (train[0][:3], y[:3]), (train[0], y), damping=5.0)
        slopes = y - train[0] @ truth.get_flat(model)
        g = -np.cos(slopes)[:, None] * train[0]
        h = -(train[0].T * np.sin(slopes)) @ train[0] / N + 5.0 * np.eye(4)
        assert truth.relative_error(found, g[:3] @ np.linalg.solve(h, g.T) / N) < 1e-9
    assert len(made) == 1


def test_it_is_gone_with_the_model(train, test):
    model = truth.softmax_model.fresh(4, 3, L2)
    ask(model, test, train)
    assert kept._last
    del model
    keras.backend.clear_session()
    gc.collect()
    assert not kept._last


def test_what_is_large_or_not_in_memory_is_not_kept(train, test, made, monkeypatch):
    model = model_of()
    monkeypatch.setattr(kept, "_MOST", 100)
    monkeypatch.setattr(kept, "_EACH", 1)
    ask(model, test, train)
    assert not kept._last
    monkeypatch.setattr(kept, "_MOST", 1e9)
    monkeypatch.setattr(batches, "_SMALL", 0)
    ask(model, test, tf.data.Dataset.from_tensor_slices(train).batch(8))
    assert not kept._last


def test_an_explainer_takes_what_is_there(train, test, made):
    model = model_of()
    ask(model, test, train)
    explainer = ki.Explainer(model, train, method="direct", **QUIET)
    found = explainer.influence(test).values
    assert truth.relative_error(found, expected(model, test, train)) < 1e-9
    assert len(made) == 1
    truth.set_flat(model, np.zeros(15))
    with pytest.raises(ki.StaleError):
        explainer.influence(test)
