"""What a few examples do not show: rows that are rare, lengths that change, constants beside which all is small."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.loss.looks import few_of
from tests import truth

layers, ops = keras.layers, keras.ops
N, LAMBDA = 60, 0.3
# None of these is among the eight rows at even distances.
RARE = [21, 22, 38]


def _linear(cls=keras.Model, loss="mse", front=None, seed=1):
    inputs = keras.Input((4,))
    hidden = inputs if front is None else front(inputs)
    model = cls(inputs, layers.Dense(2)(layers.Dense(3, "tanh")(hidden)))
    model.compile("sgd", loss)
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        v.assign(0.5 * rng.normal(size=v.shape))
    return model


def _data(rng):
    return rng.normal(size=(N, 4)), rng.uniform(-0.9, 0.9, (N, 2))


def _by_each(model, x, y, tests, w=None):
    """Scores from the gradients of single examples, whose mean the loss is, by finite differences for the rest."""
    weights = [{} if w is None else {"sample_weight": w[i : i + 1]} for i in range(len(x))]
    g = np.array(
        [truth.gradient(model, x[i : i + 1], y[i : i + 1], **weights[i]) for i in range(len(x))]
    )
    own = np.array([truth.gradient(model, x[i : i + 1], y[i : i + 1]) for i in tests])
    hessian = truth.finite_difference_hessian(model, x, y, weight=w)
    return own @ np.linalg.solve(hessian + LAMBDA * np.eye(len(hessian)), g.T) / len(x)


def _scores(model, test, train, **options):
    about = {"damping": LAMBDA, "curvature": "hessian", "method": "direct", "verbose": 0}
    return ki.influence(model, test, train, **{**about, **options}).values


class Penalised(keras.Model):
    """Keras's loss and a penalty on large outputs, which no sample weight multiplies."""

    bound = 0.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        beyond = ops.maximum(ops.abs(y_pred) - self.bound, 0.0)
        return loss + 2.0 * ops.mean(ops.square(beyond))


@pytest.mark.parametrize("rare", [False, True])
def test_a_penalty_on_the_outputs_is_in_the_curvature_and_in_each_example(rare, float64, rng):
    model, (x, y) = _linear(Penalised), _data(rng)
    if rare:
        x *= 0.2
        x[RARE] *= 50
        model.bound = 1.01 * np.abs(model(np.delete(x, RARE, 0)).numpy()).max()
        assert (np.abs(model(x[RARE]).numpy()) > model.bound).any()
    expected = _by_each(model, x, y, [0, *RARE])
    some = x[[0, *RARE]], y[[0, *RARE]]
    for batch_size in (None, 10):
        found = _scores(model, some, (x, y), batch_size=batch_size)
        assert truth.relative_error(found, expected) < 1e-6


class Clipped(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = ops.mean(ops.square(y - y_pred), -1)
        if sample_weight is not None:
            losses = losses * ops.minimum(ops.cast(sample_weight, losses.dtype), 2.0)
        return ops.mean(losses)


def test_weights_that_are_clipped_in_few_rows(float64, rng):
    model, (x, y) = _linear(Clipped), _data(rng)
    w = np.ones(N)
    w[RARE] = 5.0
    expected = _by_each(model, x, y, [0, 1], w)
    for batch_size in (None, 10):
        found = _scores(model, (x[:2], y[:2]), (x, y, w), batch_size=batch_size)
        assert truth.relative_error(found, expected) < 1e-6


class Beyond(layers.Layer):
    """Adds the squares of what its input is beyond a bound, a mean over the examples."""

    bound = 0.0

    def call(self, x):
        beyond = ops.maximum(ops.abs(x[:, 0]) - self.bound, 0.0)
        self.add_loss(ops.mean(ops.square(beyond)))
        return x


class Multiple(keras.Model):
    """So many times Keras's own loss; or 0 times what layers add, beside a mean of squares."""

    factor = 1.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if self.factor:
            return self.factor * super().compute_loss(x, y, y_pred, sample_weight, training)
        losses = ops.mean(ops.square(y - y_pred), -1)
        return ops.mean(losses if sample_weight is None else losses * sample_weight)


@pytest.mark.slow_cases("False-1.0", "False-0.0", "True-2.0")
@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("rare", [False, True])
def test_what_layers_add_is_in_a_loss_of_the_users_own_as_often_as_it_takes_it(
    factor, rare, float64, rng
):
    inputs, layer = keras.Input((4,)), Beyond()
    hidden = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.0))(inputs)
    model = Multiple(inputs, layers.Dense(2)(layer(hidden)))
    model.factor = factor
    model.compile("sgd", "mse")
    x, y = _data(rng)
    x[RARE] *= 20
    if rare:
        values = np.abs(model.layers[1](np.delete(x, RARE, 0)).numpy()[:, 0])
        layer.bound = 1.01 * values.max()
    expected = _by_each(model, x, y, [0, *RARE])
    found = _scores(model, (x[[0, *RARE]], y[[0, *RARE]]), (x, y))
    assert truth.relative_error(found, expected) < 1e-6


def _masked(y_true, y_pred):
    """A mean over the examples whose labels are not negative, one number an example."""
    there = ops.cast(y_true[:, 0] > -1, y_pred.dtype)
    return ops.mean(ops.square(y_true - y_pred), -1) * there / ops.mean(there)


class Bounded(layers.Layer):
    """Divides by the largest of a batch where that is large."""

    def call(self, x):
        return x / ops.maximum(1.0, ops.max(ops.abs(x)) / 9.0)


@pytest.mark.parametrize("form", ["arrays", "batches of 10", "dataset"])
@pytest.mark.parametrize("what", ["loss", "layer"])
def test_what_mixes_few_of_the_examples_is_refused(what, form, rng):
    x, y = _data(rng)
    if what == "loss":
        model, message = _linear(loss=_masked), "not a mean or sum over examples"
        y[RARE] = -2.0
    else:
        model, message = _linear(front=Bounded()), "depends on the other examples"
        x[RARE] *= 20
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(10) if form == "dataset" else (x, y)
    about = {"batch_size": 10} if form == "batches of 10" else {}
    with pytest.raises(ValueError, match=message):
        _scores(model, (x[:2], y[:2]), train, **about)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_a_loss_of_keras_that_mixes_examples_is_refused_though_few_have_a_mask(
    batch_size, float64, rng
):
    """Dice of all of a batch: where masks are blank and outputs small it is 1 whatever the batch is."""
    inputs = keras.Input((4,))
    bias = keras.initializers.Constant(-4.0)
    model = keras.Model(inputs, layers.Dense(3, "sigmoid", bias_initializer=bias)(inputs))
    model.compile("sgd", keras.losses.Dice())
    x, y = rng.normal(size=(N, 4)), np.zeros((N, 3))
    y[RARE], x[RARE] = 1.0, x[RARE] + 20
    with pytest.raises(ValueError, match="not a mean or sum over examples"):
        _scores(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)


def _of_lengths(x, y, lengths, batch_size):
    """x[i] repeated to lengths that change every five examples."""
    parts = [
        tf.data.Dataset.from_tensor_slices(
            (np.repeat(x[i : i + 5, None], length, 1), y[i : i + 5])
        ).batch(batch_size)
        for i, length in zip(range(0, N, 5), lengths)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.concatenate(part)
    return whole


class Centred(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


def _pooled(front=None):
    inputs = keras.Input((None, 4))
    hidden = layers.GlobalAveragePooling1D()(inputs)
    hidden = hidden if front is None else front(hidden)
    # Not an activity regulariser, which was a sum before it was a mean.
    hidden = Beyond()(layers.Dense(3, "tanh")(hidden))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("batch_size", [5, 3, 2])
@pytest.mark.filterwarnings("error::keras_influence.ObjectiveWarning")
def test_what_layers_add_to_batches_of_different_lengths(batch_size, float64, rng):
    x, y = _data(rng)
    model = _pooled()
    expected = _by_each(model, x[:, None], y, [0, 1])
    train = _of_lengths(x, y, [5, 3, 4] * 4, batch_size)
    found = _scores(model, (x[:2, None], y[:2]), train)
    assert truth.relative_error(found, expected) < 1e-6


def test_few_examples_of_different_lengths_are_as_many_as_there_are_of_one(rng):
    x, y = _data(rng)
    train = _of_lengths(x, y, [5, 3, 4] * 4, 5)
    with pytest.raises(ValueError, match="depends on the other examples"):
        _scores(_pooled(Centred()), (x[:2, None], y[:2]), train)
    batches = ki.engine.data.batches.read(train, None, "train")
    rows = few_of(batches)[0]
    assert len(rows) == len({row.numpy().tobytes() for row in rows}) == 5


class Likelihood(layers.Layer):
    """Adds -log N(x; 0, 1), a mean over the examples, with a constant beside which they differ little."""

    def call(self, x):
        self.add_loss(ops.mean(0.5 * ops.sum(ops.square(x), -1) + 3000.0))
        return x


@pytest.mark.parametrize("seed", range(2))
def test_a_mean_beside_a_large_constant_is_a_mean(seed, float64, rng):
    model, (x, y) = _linear(front=None, seed=seed), _data(rng)
    inputs = keras.Input((4,))
    hidden = Likelihood()(model.layers[1](inputs))
    model = keras.Model(inputs, model.layers[2](hidden))
    model.compile("sgd", "mse")
    expected = _by_each(model, x, y, [0, 1])
    found = _scores(model, (x[:2], y[:2]), (x, y))
    assert truth.relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("constant", [0.0, 3000.0])
def test_a_loss_that_mixes_examples_beside_a_large_constant_is_refused(constant, float64, rng):
    def loss(y_true, y_pred):
        squares = ops.mean(ops.square(y_true - y_pred))
        return constant + squares + ops.square(ops.mean(y_pred))

    x, y = _data(rng)
    with pytest.raises(ValueError, match="not a mean or sum over examples"):
        _scores(_linear(loss=loss), (x[:2], y[:2]), (x, y))


def test_a_mean_of_what_is_left_of_a_batch_is_said_to_be_one(rng):
    def loss(y_true, y_pred):
        there = ops.cast(y_true > -1, y_pred.dtype)
        return ops.sum(there * ops.square(y_true - y_pred)) / ops.sum(there)

    x, y = _data(rng)
    y[0] = -2.0
    with pytest.raises(ValueError, match="Divide by the size of the batch"):
        _scores(_linear(loss=loss), (x[1:3], y[1:3]), (x, y))


def test_a_mean_over_what_padding_leaves_of_a_batch_is_refused_with_a_way_out(rng):
    """It counts an example of few steps in a batch otherwise than alone; with `ignore_class` Keras says what it divides by."""

    def masked(y_true, y_pred):
        losses = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        there = ops.cast(y_true > 0, losses.dtype)
        return ops.sum(there * losses) / ops.sum(there)

    model = keras.Sequential([keras.Input((5, 4)), layers.Dense(3)])
    model.compile("sgd", masked)
    x, y = rng.normal(size=(N, 5, 4)), rng.integers(1, 3, (N, 5))
    y[::2, 2:] = 0
    with pytest.raises(ValueError, match="not a mean or sum over examples.*`ignore_class`"):
        _scores(model, (x[:2], y[:2]), (x, y))
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile("sgd", ignoring)
    assert np.any(_scores(model, (x[:2], y[:2]), (x, y)))
