"""Copies are trained; the model, random states and Keras's precision stay as they were."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import evaluation
from tests import truth
from tests.conftest import set_precision
from tests.retraining import Counted, least_squares, ridge_changes


def state_of(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def broken(model, data):
    truth.set_flat(model, np.ones(4))
    raise RuntimeError("power cut")


CALLS = {
    "leave_one_out": lambda m, t, d, **k: evaluation.leave_one_out(m, t, d, [0, 1], **k),
    "subset_outputs": lambda m, t, d, **k: evaluation.subset_outputs(m, t, d, subsets=2, **k),
    "removal_curve": lambda m, t, d, **k: evaluation.removal_curve(m, t, d, counts=[2], **k),
}


@pytest.mark.slow_cases("removal_curve-fit")
@pytest.mark.parametrize("fit", [None, Counted(), broken], ids=["lbfgs", "fit", "broken"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_is_left_as_it_was(ridge, call, fit):
    model, train, test = ridge
    model.fit(*train, verbose=0)
    before = state_of(model)
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1]
    if fit is broken:
        with pytest.raises(RuntimeError, match="power cut"):
            call(model, test, train, fit=fit, verbose=0)
    else:
        call(model, test, train, fit=fit, verbose=0)
    assert all((a == b).all() for a, b in zip(before, state_of(model)))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert keras.config.floatx() == "float64"


def draws():
    tensors = tf.random.uniform((2,)), keras.random.uniform((2,))
    return [*(t.numpy().tolist() for t in tensors), np.random.rand(), random.random()]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_next_draws_are_what_they_would_have_been(ridge, call):
    """Also where `fit` draws with the seed that its user has set, 0 like the first of ours."""

    def fit(model, data):
        draws(), draws()
        least_squares(model, data)

    def following(between):
        keras.utils.set_random_seed(0)
        draws()
        between()
        return draws()

    model, train, test = ridge
    expected = following(lambda: None)
    assert following(lambda: call(model, test, train, fit=fit, verbose=0)) == expected


def test_precision_is_restored_after_an_exception(ridge):
    model, train, test = ridge
    set_precision("float32")
    with pytest.raises(ValueError, match="`train`"):
        evaluation.verify(model, None, (train[0][:, :2], train[1]), verbose=0)
    assert keras.config.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_progress_is_shown_when_asked(ridge, capsys):
    model, train, test = ridge
    evaluation.leave_one_out(model, test, train, [0, 1], verbose=1)
    assert "Retrain 2 times" in capsys.readouterr().out
    evaluation.subset_outputs(model, test, train, fit=least_squares, subsets=2, verbose=1)
    assert "Models of 2 subsets x 3 seeds" in capsys.readouterr().out
    evaluation.leave_one_out(model, test, train, [0, 1], verbose=0)
    assert capsys.readouterr().out == ""


def test_fit_needs_arrays(ridge):
    model, train, test = ridge
    dataset = tf.data.Dataset.from_tensor_slices(train).batch(8)
    with pytest.raises(TypeError, match="`train`"):
        evaluation.leave_one_out(model, test, dataset, [0], fit=least_squares, verbose=0)
    result = evaluation.leave_one_out(model, test, dataset, [0], tol=1e-8, verbose=0)
    assert truth.relative_error(result.actual, ridge_changes(train, test, [0]).T) < 1e-5


def test_a_fit_that_diverges_is_refused(ridge):
    def diverging(model, data):
        truth.set_flat(model, np.full(4, np.nan))

    model, train, test = ridge
    with pytest.raises(ValueError, match="`fit` left NaN"):
        evaluation.leave_one_out(model, test, train, [0], fit=diverging, verbose=0)


# ---- a copy is the same model, or it is refused


def test_a_copy_that_computes_something_else_is_refused(rng):
    """Keras rebuilds a layer whose config forgets an argument, with that argument's default."""

    class Scaled(keras.layers.Layer):
        def __init__(self, by=1.0, **options):
            super().__init__(**options)
            self.by = by

        def call(self, x):
            return self.by * x

        def get_config(self):
            return super().get_config() if self.by == 1.0 else {"name": self.name}

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Scaled(3.0)(keras.layers.Dense(1)(inputs)))
    model.compile("sgd", "mse")
    data = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    for fit in (None, Counted()):
        with pytest.raises(ValueError, match="cannot be copied.*the copy has other outputs"):
            evaluation.leave_one_out(model, data, data, [0], fit=fit, verbose=0)


def test_a_copy_with_another_loss_is_refused(rng):
    class Powered(keras.losses.Loss):
        def __init__(self, power=2.0, **options):
            super().__init__(**options)
            self.power = power

        def call(self, y, p):
            return keras.ops.mean(keras.ops.abs(y - p) ** self.power, -1)

    model = truth.ridge_model(3, truth.L2)
    model.compile("sgd", Powered(4.0))
    data = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    with pytest.raises(ValueError, match="cannot be copied.*the copy has another loss"):
        evaluation.leave_one_out(model, data, data, [0], verbose=0)


def test_how_the_copy_was_trained_is_said_as_it_was(rng):
    """A layer that works in float32 only cannot be retrained in float64."""

    class Single(keras.layers.Layer):
        def call(self, x):
            return tf.matmul(x, tf.eye(3, dtype=tf.float32))

    data = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    set_precision("float32")
    for layer, precision in ((Single(), "float32"), (keras.layers.Activation("tanh"), "float64")):
        inputs = keras.Input((3,))
        model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
        model.compile("sgd", "mse")
        found = evaluation.leave_one_out(model, data, data, [0], tol=0.1, verbose=0)
        assert found.how == f"L-BFGS from the base, in {precision}"
