"""`verify` finds what is wrong, and says what it could not look at."""

import keras
import numpy as np
import pytest
import scipy.optimize

import keras_influence as ki
from keras_influence import evaluation
from tests import truth
from tests.truth import L2
from tests.zoo import Reconstruction


def test_verify_says_that_a_good_model_is_good(rng):
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, L2, cls=ki.InfluenceModel)
    truth.set_flat(model, truth.SoftmaxRegression(x, y, 3, L2).fit(truth.get_flat(model)))
    found = model.verify(None, (x, y), removals=6, verbose=0)
    assert found.ok
    assert found.hvp_error < 1e-6
    assert found.gradient < 1e-6
    assert found.retrained.pearson > 0.99
    assert "at a minimum" in repr(found)
    assert type(model).verify is evaluation.verify is ki.verify


def test_verify_says_nothing_of_retraining_where_nothing_changes(rng):
    """At a perfect fit no example has a gradient, and none moves the weights."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = rng.normal(size=(20, 3))
    found = ki.verify(model, None, (x, model.predict(x, verbose=0)), removals=4, verbose=0)
    assert found.gradient == 0
    said = " ".join(found.verdict)
    assert "at a minimum" in said
    assert "cannot be told" in said
    assert "NOT predict" not in said


def test_verify_sees_a_wrong_second_derivative(rng):
    """A layer that stops part of its gradient has products that no difference confirms."""
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class Stopped(keras.layers.Layer):
        def call(self, x):
            @tf.custom_gradient
            def odd(t):
                # The first derivative of t² is right; its own derivative is stopped.
                return t**2, lambda d: d * 2 * tf.stop_gradient(t)

            return odd(x)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Stopped()(keras.layers.Dense(2)(inputs)))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    found = evaluation.verify(model, None, (x, y), removals=0, damping=10.0, verbose=0)
    assert not found.ok
    assert found.hvp_error > 0.01
    assert "do NOT agree" in repr(found)
    assert found.retrained is None
    with pytest.raises(ValueError, match="removals"):
        found.plot()


@pytest.mark.slow
def test_verify_sees_that_training_stopped_early(rng):
    x, y = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    model = truth.softmax_model(3, 3, L2)
    found = evaluation.verify(model, (x[:2], y[:2]), (x, y), removals=2, verbose=0)
    assert found.gradient > 10
    assert "stopped away from a minimum" in repr(found)


@pytest.mark.slow
def test_the_default_test_examples_are_those_with_the_largest_loss(rng):
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    model = truth.softmax_model(3, 3, L2)
    losses = truth.SoftmaxRegression(x, y, 3, L2).losses(truth.get_flat(model))
    worst = np.argsort(-losses)[:3]
    options = {"removals": 4, "verbose": 0}
    found = evaluation.verify(model, None, (x, y), **options).retrained
    asked = evaluation.verify(model, (x[worst], y[worst]), (x, y), **options).retrained
    assert found.predicted.shape == (3, 4)
    assert found.actual == pytest.approx(asked.actual, rel=1e-9, abs=1e-15)


@pytest.mark.slow
def test_an_approximation_is_called_one(rng):
    """EK-FAC has no tolerance to miss: what it leaves is said, and the retrainings judge it."""
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, L2)
    truth.set_flat(model, truth.SoftmaxRegression(x, y, 3, L2).fit(truth.get_flat(model)))
    found = evaluation.verify(model, None, (x, y), method="ekfac", removals=6, verbose=0)
    assert found.approximation
    assert found.solver == "EKFAC"
    assert found.residual > 1e-3
    assert "EKFAC is an approximation" in repr(found)
    assert f"{found.residual:.1e}" in repr(found)
    assert "did NOT reach" not in repr(found)
    without = evaluation.verify(model, None, (x, y), method="ekfac", removals=0, verbose=0)
    assert "only retraining can say what it is worth" in " ".join(without.verdict)
    assert not without.ok


@pytest.mark.slow
def test_a_solve_that_misses_its_tolerance_is_said_to(rng):
    x, y = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    model = truth.softmax_model(5, 3, L2)
    method = ki.CG(tol=1e-12, max_iter=1)
    found = evaluation.verify(model, None, (x, y), method=method, removals=0, verbose=0)
    assert not found.approximation
    assert "The solves by CG did NOT reach their tolerance" in repr(found)
    assert not found.ok


@pytest.mark.slow
def test_damping_is_chosen_if_asked(rng):
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    model = truth.softmax_model(3, 3, L2)
    found = evaluation.verify(model, None, (x, y), damping="auto", removals=4, verbose=0)
    # A tenth of the mean eigenvalue, by the closed form.
    h = truth.SoftmaxRegression(x, y, 3, L2).hessian(truth.get_flat(model))
    assert found.damping == pytest.approx(0.1 * np.trace(h) / 12, rel=0.2)
    assert f"with damping {found.damping:g} as a pull" in " ".join(found.verdict)
    assert found.retrained.pearson > 0.95


@pytest.mark.slow
def test_classes_that_nobody_registered_are_verified(rng):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(Twice()(inputs)))
    model.compile("sgd", "mse")
    x = rng.normal(size=(40, 3))
    y = x @ rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(40, 1))
    theta = np.linalg.lstsq(np.hstack([2 * x, np.ones((40, 1))]), y[:, 0], rcond=None)[0]
    truth.set_flat(model, theta)
    found = evaluation.verify(model, None, (x, y), removals=4, verbose=0)
    assert found.missing == ""
    assert found.hvp_error < 1e-6
    assert found.retrained.pearson > 0.99


@pytest.mark.slow
def test_a_model_of_words_is_verified(rng):
    words = np.array([["red"], ["green"], ["blue"]], object)[rng.integers(0, 3, 40)]
    lookup = keras.layers.StringLookup(output_mode="one_hot")
    lookup.adapt(words)
    inputs = keras.Input((1,), dtype="string")
    dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.1))
    model = keras.Model(inputs, dense(lookup(inputs)))
    model.compile("sgd", "mse")
    train = words, rng.normal(size=(40, 1))
    found = evaluation.verify(model, train, removals=4, damping=0.1, verbose=0)
    assert not found.missing
    assert found.hvp_error < 1e-6
    assert found.retrained.pearson > 0.95


def test_a_copy_that_cannot_take_the_data_is_not_their_fault(rng):
    class Filled(keras.layers.Layer):
        table = None

        def call(self, x):
            if self.table is None:
                raise ValueError("the table is empty")
            return x * self.table

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    inputs, layer = keras.Input((3,)), Filled()
    layer.table = 2.0
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))
    model.compile("sgd", "mse")
    train = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    found = evaluation.verify(model, train, damping=0.1, verbose=0)
    assert "the table is empty" in found.missing
    with pytest.raises(ValueError, match="`train` does not fit"):
        evaluation.verify(model, (train[0][:, :2], train[1]), verbose=0)


def uncopyable(rng):
    """A trained model whose class does not say how to make another."""

    class Net(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def build(self, shape):
            self.layer.build(shape)

        def call(self, x):
            return self.layer(x)

        def get_config(self):
            return {}

    model = Net(keras.layers.Dense(1, use_bias=False))
    model.build((None, 3))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 1))
    theta = np.linalg.lstsq(x, y[:, 0], rcond=None)[0]
    truth.set_flat(model, theta + 0.1)
    return model, x, y, theta


def test_a_model_that_cannot_be_copied_is_verified_as_far_as_can_be(rng):
    model, x, y, theta = uncopyable(rng)
    found = evaluation.verify(model, None, (x, y), verbose=0)
    assert np.isnan(found.hvp_error)
    assert found.retrained is None
    assert found.converged
    assert not found.ok
    words = " ".join(found.verdict)
    assert "no example was left out in earnest: Keras cannot copy the model, since " in words
    assert found.missing in words
    # The gradient of the mean squared error, by hand, over the median of one example's part.
    parts = 2 * (x @ (theta + 0.1) - y[:, 0])[:, None] * x
    one = np.median(np.linalg.norm(parts, axis=1)) / 40
    assert found.gradient == pytest.approx(np.linalg.norm(parts.mean(0)) / one)
    with pytest.raises(ValueError, match="cannot copy the model"):
        found.plot()


def test_what_retrains_such_a_model_says_that_it_cannot(rng):
    model, x, y, _ = uncopyable(rng)
    with pytest.raises(ValueError, match="`model` cannot be copied by Keras: .*get_config"):
        evaluation.leave_one_out(model, (x, y), (x, y), [0], verbose=0)


def test_a_loss_that_takes_inputs_is_asked_in_the_precision_of_the_model(rng):
    x = rng.normal(size=(12, 3)).astype("float32")
    model = Reconstruction()
    model(x)
    model.compile("sgd")
    found = evaluation.verify(model, (x,), removals=0, verbose=0)
    assert found.hvp_error < 1e-3


@pytest.mark.parametrize("proximal", [0.0, 0.1])
def test_weights_that_a_constraint_holds_are_not_confirmed(proximal, rng):
    """The third weight is 0 within its constraint, and L-BFGS takes it to where there is none."""
    x = rng.normal(size=(40, 3))
    y = x @ [1.0, 0.5, -0.7] + 0.3 * rng.normal(size=40)
    model = keras.Sequential([keras.Input((3,))])
    model.add(keras.layers.Dense(1, use_bias=False, kernel_constraint="non_neg"))
    model.compile("sgd", "mse")
    truth.set_flat(model, scipy.optimize.nnls(x, y)[0])
    test, options = (x[:3], y[:3]), {"damping": proximal, "verbose": 0}
    with pytest.warns(ki.ObjectiveWarning, match=r"L-BFGS knows no constraints.*/kernel"):
        found = evaluation.leave_one_out(
            model, test, (x, y), range(4), proximal=proximal, **options
        )
    free = np.linalg.solve(
        x.T @ x / 20 + proximal * np.eye(3), x.T @ y / 20 + proximal * truth.get_flat(model)
    )
    assert free[2] < -0.1
    assert [path.split("/")[-1] for path in found.outside] == ["kernel"]
    with pytest.warns(ki.ObjectiveWarning, match="holds weights of"):
        verdict = ki.verify(model, test, (x, y), removals=4, **options)
    assert not verdict.ok
    assert "Scores predict retraining" not in repr(verdict)
    assert "outside of that of" in " ".join(verdict.verdict)


@pytest.mark.filterwarnings("error")
def test_a_constraint_that_is_never_reached_is_not_spoken_of(rng):
    x = rng.normal(size=(40, 3))
    y = x @ [1.0, 0.5, 0.7] + 0.1 * rng.normal(size=40)
    model = keras.Sequential([keras.Input((3,))])
    model.add(keras.layers.Dense(1, use_bias=False, kernel_constraint="non_neg"))
    model.compile("sgd", "mse")
    truth.set_flat(model, scipy.optimize.nnls(x, y)[0])
    found = ki.verify(model, (x[:3], y[:3]), (x, y), removals=4, damping=0.0, verbose=0)
    assert found.ok and found.retrained.outside == ()
