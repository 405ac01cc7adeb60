"""Losses of single examples, against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence import evaluation
from tests import truth
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(30, 4)), rng.integers(0, 3, 30)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
@pytest.mark.parametrize("batch_size", [7, None])
def test_each_example_has_its_own_loss(batch_size, reduction, data):
    """The regulariser is in none of them, and the reduction does not change them."""
    model = truth.softmax_model(4, 3, L2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction=reduction))
    exact = truth.SoftmaxRegression(*data, 3, L2).losses(truth.get_flat(model))
    found = ki.losses(model, data, batch_size=batch_size)
    assert found.dtype == np.float64
    assert truth.relative_error(found, exact) < 1e-9


def test_weights_of_examples_and_classes_scale_them(data, rng):
    model = truth.softmax_model(4, 3)
    exact = truth.SoftmaxRegression(*data, 3, 0.0).losses(truth.get_flat(model))
    s = rng.uniform(0.5, 2, 30)
    assert truth.relative_error(ki.losses(model, (*data, s)), s * exact) < 1e-9
    weights = {0: 2.0, 1: 0.0}
    scale = np.array([weights.get(label, 1.0) for label in data[1]])
    found = ki.losses(model, data, class_weight=weights)
    assert truth.relative_error(found, scale * exact) < 1e-9


def test_a_dataset_keeps_its_order(data):
    model = truth.softmax_model(4, 3)
    exact = truth.SoftmaxRegression(*data, 3, 0.0).losses(truth.get_flat(model))
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    assert truth.relative_error(ki.losses(model, dataset), exact) < 1e-9


@keras.saving.register_keras_serializable("tests")
class Endpoint(keras.layers.Layer):
    """Adds the whole loss, or a part of it: the squares of its input."""

    def __init__(self, reduce="mean", **options):
        super().__init__(**options)
        self.reduce = reduce

    def call(self, z):
        self.add_loss(getattr(keras.ops, self.reduce)(keras.ops.sum(z**2, -1)))
        return z

    def get_config(self):
        return {**super().get_config(), "reduce": self.reduce}


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("loss", [None, "mse"])
def test_what_layers_add_for_an_example_is_in_it(loss, reduce, rng):
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(2)
    model = keras.Model(inputs, Endpoint(reduce)(dense(inputs)))
    model.compile("sgd", loss)
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(9, 2))
    z = x @ dense.kernel.numpy() + dense.bias.numpy()
    exact = (z**2).sum(1) + (((z - y) ** 2).mean(1) if loss else 0)
    assert truth.relative_error(ki.losses(model, (x, y), batch_size=4), exact) < 1e-9


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_leaving_out_sees_what_layers_add(reduce, rng):
    """Least squares without y: the minimum is known, with one example or without."""
    inputs = keras.Input((2,))
    shifted = keras.layers.Rescaling(1.0, -1.0)(keras.layers.Dense(1, use_bias=False)(inputs))
    model = keras.Model(inputs, Endpoint(reduce)(shifted))
    model.compile("sgd")
    x = rng.normal(size=(20, 2))
    found = evaluation.leave_one_out(model, (x[:3],), (x,), [4, 7], verbose=0)

    def squares(kept):
        w = np.linalg.lstsq(kept, np.ones(len(kept)), rcond=None)[0]
        return (x[:3] @ w - 1) ** 2

    without = [squares(np.delete(x, j, 0)) for j in (4, 7)]
    exact = np.transpose(without) - squares(x)[:, None]
    assert found.actual == pytest.approx(exact, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": (np.ones((3, 5)), np.zeros(3, int))}, ValueError, "`data` does not fit"),
        ({"data": (np.ones((3, 4)), np.zeros(2, int))}, ValueError, "`data`.*as many rows"),
        ({"data": np.ones((3, 4))}, TypeError, "`data` should be a tuple"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"class_weight": [1, 2]}, TypeError, "`class_weight`"),
    ],
)
def test_bad_calls_are_refused(options, error, words, data):
    with pytest.raises(error, match=words):
        ki.losses(truth.softmax_model(4, 3), **({"data": data} | options))


@pytest.mark.parametrize("name", ["losses", "group", "parameters"])
def test_labels_out_of_range_are_said_to_be_that(name, rng):
    """Also where the first rows are right."""
    model = truth.softmax_model(4, 3)
    x, y = rng.normal(size=(90, 4)), rng.integers(0, 3, 90)
    y[80] = 7
    test = x[:2], y[:2]
    questions = {
        "losses": lambda: ki.losses(model, (x, y)),
        "group": lambda: ki.group_influence(model, test, (x, y), [[0, 80]], damping=0.5),
        "parameters": lambda: ki.parameter_influence(model, [0, 80], (x, y), damping=0.5),
    }
    with pytest.raises(
        ValueError, match="`train` has examples.*in the range of the classes"
    ) as caught:
        questions[name]()
    assert not isinstance(caught.value, tf.errors.InvalidArgumentError)


@keras.saving.register_keras_serializable("test_losses")
class Refusing(keras.layers.Layer):
    """TensorFlow refuses some of its rows, for a reason that is none of the labels'."""

    def call(self, x):
        with tf.control_dependencies(
            [tf.debugging.assert_less(x, tf.cast(5, x.dtype), message="too bright")]
        ):
            return tf.identity(x)


def test_what_tensorflow_refuses_is_not_put_down_to_labels(rng):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(Refusing()(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = rng.uniform(size=(90, 4)), rng.integers(0, 3, 90)
    x[80] = 6
    with pytest.raises(ValueError, match="`train` has examples") as caught:
        ki.losses(model, (x, y))
    assert "range of the classes" not in str(caught.value)
