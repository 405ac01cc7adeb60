"""What a loss is, as one batch of all the data: against Keras's own loss of that one batch."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.pool import pooled

layers, losses, ops = keras.layers, keras.losses, keras.ops
LAMBDA = 0.7


def _expected(model, test, train, steps=()):
    """Scores from gradients of Keras's loss of all of `train`, by weights of single examples."""

    def contributions(slope, n):
        weights = np.multiply.outer(np.eye(n), np.ones(steps))
        return np.array([slope(weight) for weight in weights]) - slope(np.zeros((n, *steps)))

    def one(a, b):
        return lambda weight: truth.gradient(model, a[None], b[None], sample_weight=weight)

    parts = contributions(truth.gradient_of_weights(model, *train), len(train[0]))
    g = np.concatenate([contributions(one(*example), 1) for example in zip(*test)])
    hessian = truth.finite_difference_hessian(model, *train)
    return g @ np.linalg.solve(hessian + LAMBDA * np.eye(len(hessian)), parts.T)


def _scores(model, test, train, **options):
    options = {"damping": LAMBDA, "curvature": "hessian", "method": "direct", **options}
    return ki.influence(model, test, train, verbose=0, **options).values


@pooled
def _steps(mask=False, **options):
    inputs = keras.Input((4, 2))
    hidden = layers.Masking(0.0)(inputs) if mask else inputs
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.05))
    model = keras.Model(inputs, dense(hidden))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True, **options))
    return model


def _sequences(rng, **options):
    model = _steps(**options)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape))
    return model, rng.normal(size=(70, 4, 2)), rng.integers(0, 3, (70, 4))


@pytest.mark.slow_cases("0-5", "66-1")
@pytest.mark.parametrize("batch_size", [1, 5, 256])
@pytest.mark.parametrize("first", [0, 66])
def test_labels_that_are_ignored(batch_size, first, rng):
    """Also where none is ignored among the first examples: no batch tells what to divide by."""
    model, x, y = _sequences(rng, ignore_class=-1)
    y[first:][rng.random((70 - first, 4)) < 0.6] = -1
    y[:, 0] = 1  # Some label in each.
    expected = _expected(model, (x[:2], y[:2]), (x, y), steps=(4,))
    found = _scores(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)
    assert truth.relative_error(found, expected) < 1e-7


@pytest.mark.slow_cases("sum_over_batch_size-1")
@pytest.mark.parametrize("batch_size", [1, 5, 256])
@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
def test_steps_that_are_masked(batch_size, reduction, rng):
    model, x, y = _sequences(rng, mask=True, reduction=reduction)
    x[::3, 2:] = 0
    expected = _expected(model, (x[:2], y[:2]), (x, y), steps=(4,))
    found = _scores(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)
    assert truth.relative_error(found, expected) < 1e-7


def _regression(rng, loss=None, cls=keras.Model, n=12):
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(0.05))(inputs)
    model = cls(inputs, layers.Dense(2)(hidden))
    model.compile("sgd", loss)
    for v in model.trainable_variables:
        v.assign(rng.normal(size=v.shape))
    return model, rng.normal(size=(n, 3)), rng.normal(size=(n, 2))


@dataclasses.dataclass
class Unhashable:
    power: float

    def __call__(self, y, p):
        return ops.mean(ops.abs(y - p) ** self.power, axis=-1)


class Unreduced(losses.Loss):
    def call(self, y, p):
        return ops.square(y - p)


class OwnCall(losses.Loss):
    def __call__(self, y, p, sample_weight=None):
        return ops.mean(
            ops.mean(ops.square(y - p), -1) * (1 if sample_weight is None else sample_weight)
        )


def one_number(y, p):
    return ops.mean(ops.square(y - p))


def one_sum(y, p):
    return ops.sum(ops.square(y - p))


@pytest.mark.slow_cases("loss3-mse")
@pytest.mark.parametrize(
    ("loss", "same"),
    [
        (one_number, "mse"),
        (one_sum, lambda y, p: 12 * 2 * ops.mean(ops.square(y - p), -1)),
        (Unreduced(), "mse"),
        (OwnCall(), "mse"),
        (Unhashable(2.0), "mse"),
        (functools.partial(lambda y, p, k: k * ops.mean(ops.square(y - p), -1), k=2.0), None),
    ],
)
def test_losses_of_any_form(loss, same, rng):
    """The truth is a loss of Keras's with the same values, which takes weights."""
    model, x, y = _regression(rng, loss)
    found = _scores(model, (x[:2], y[:2]), (x, y))
    if same is not None:
        model.compile("sgd", same)
    expected = _expected(model, (x[:2], y[:2]), (x, y))
    if loss is one_sum:  # A test example by itself is a sum over one example.
        expected /= 12
    assert truth.relative_error(found, expected) < 1e-7


class Ignoring(keras.Model):
    """A loss of one's own that does not look at sample weights."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y - y_pred)) + sum(self.losses)


class Halving(keras.Model):
    """A loss of one's own that is not linear in sample weights."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        e = ops.mean(ops.square(y - y_pred), -1)
        return ops.sqrt(ops.mean(e if sample_weight is None else e * sample_weight))


def test_a_compute_loss_that_ignores_weights(rng):
    model, x, y = _regression(rng, "mse", Ignoring)
    found = _scores(model, (x[:2], y[:2]), (x, y))
    plain, _, _ = _regression(rng, "mse")
    plain.set_weights(model.get_weights())
    assert truth.relative_error(found, _expected(plain, (x[:2], y[:2]), (x, y))) < 1e-7


def test_a_compute_loss_of_no_examples_is_refused(rng):
    model, x, y = _regression(rng, "mse", Halving)
    with pytest.raises(ValueError, match="not linear in `sample_weight`.*not a mean or sum"):
        _scores(model, (x, y), (x, y))


def test_an_output_without_a_loss_does_not_count(rng):
    """Nor does a batch of as many rows as there are outputs."""
    model, x, y = _regression(rng, "mse")
    hidden = model.layers[1].output
    two = keras.Model(model.inputs, [model.outputs[0], hidden])
    two.compile("sgd", [losses.MeanSquaredError(), None])
    p = model.count_params()
    expected = ki.hvp(model, np.eye(p), (x, y), curvature="gauss_newton")
    for batch_size in (2, 256):
        options = {"curvature": "gauss_newton", "batch_size": batch_size}
        assert truth.relative_error(ki.hvp(two, np.eye(p), (x, y), **options), expected) < 1e-9


@pytest.mark.parametrize(
    "activation", [tf.nn.softmax, lambda z: ops.exp(z) / ops.sum(ops.exp(z), -1, keepdims=True)]
)
def test_gauss_newton_of_a_softmax_that_is_not_keras(activation, rng):
    """It is the Hessian of softmax regression, in closed form, not the second moment of gradients."""
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, activation)(inputs))
    model.compile("sgd", "sparse_categorical_crossentropy")
    theta = rng.normal(size=15)
    truth.set_flat(model, theta)
    expected = truth.SoftmaxRegression(x, y, 3, 0.0).hessian(theta)
    found = ki.hvp(model, np.eye(15), (x, y), curvature="gauss_newton")
    assert truth.relative_error(found, expected) < 1e-6


def test_gauss_newton_of_a_sigmoid_that_is_not_keras(rng):
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 2, (30, 1))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1, tf.nn.sigmoid, use_bias=False)(inputs))
    model.compile("sgd", "binary_crossentropy")
    p = 1 / (1 + np.exp(-x @ model.get_weights()[0]))
    found = ki.hvp(model, np.eye(4), (x, y), curvature="gauss_newton")
    assert truth.relative_error(found, (x * p * (1 - p)).T @ x / 30) < 1e-6


class Delegating(keras.Model):
    """What most overrides look like: Keras's own loss, and something beside it."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 2 * super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )


@pooled
def _delegating_model(**options):
    inputs = keras.Input((4, 2))
    model = Delegating(inputs, layers.Dense(3)(inputs))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True, **options))
    return model


def _delegating(rng, n, **options):
    model = _delegating_model(**options)
    return model, rng.normal(size=(n, 4, 2)), rng.integers(0, 3, (n, 4))


@pytest.mark.slow_cases("sum-1")
@pytest.mark.parametrize("batch_size", [1, 5, 256])
@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size"])
def test_a_compute_loss_of_steps_by_way_of_keras(batch_size, reduction, rng):
    """An example's weight is for all of its steps."""
    model, x, y = _delegating(rng, 20, reduction=reduction)
    expected = _expected(model, (x[:2], y[:2]), (x, y), steps=(4,))
    found = _scores(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)
    assert truth.relative_error(found, expected) < 1e-7


@pytest.mark.slow_cases("1")
@pytest.mark.parametrize("batch_size", [1, 16, 256])
def test_a_compute_loss_that_divides_by_a_mask_anywhere_is_refused(batch_size, rng):
    """Also where none of the examples that are looked at first has anything to ignore."""
    model, x, y = _delegating(rng, 200, ignore_class=-1)
    looked_at = np.linspace(0, 199, 8).astype(int)
    y[np.setdiff1d(np.arange(100, 180), looked_at), 1:] = -1
    with pytest.raises(ValueError, match="depends on the batch, such as a mask"):
        _scores(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)


def test_one_number_that_is_no_mean_over_later_examples_is_refused(rng):
    def odd(y, p):
        """A mean, but where a label is above 5, which counts for the whole batch."""
        return ops.mean(ops.square(y - p)) + ops.max(ops.relu(y - 5))

    model, x, y = _regression(rng, odd, n=60)
    y[31, 0] = 7.0
    with pytest.raises(ValueError, match="not a mean or sum"):
        _scores(model, (x[:2], y[:2]), (x, y), batch_size=10)
