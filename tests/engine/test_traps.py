"""The traps of second derivatives in Keras and TensorFlow, one test each."""

import warnings

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

import keras_influence as ki
from tests import truth

layers = keras.layers

# Of normalisations, embeddings, convolutions and pooling the zoo has products and scores.
STACKS = {
    "LSTM": ((4, 2), lambda: [layers.LSTM(3)]),
    "Dropout": ((5,), lambda: [layers.Dense(4, "tanh"), layers.Dropout(0.5)]),
}


def _problem(name, rng):
    shape, stack = STACKS[name]
    model = keras.Sequential([*stack(), layers.Dense(3, activation="softmax")])
    x = rng.normal(size=(6, *shape))
    model(x[:1])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, x, rng.integers(0, 3, 6)


@pytest.mark.slow_cases("LSTM")
@pytest.mark.parametrize("name", STACKS)
def test_hvp_agrees_with_finite_differences(name, rng):
    model, x, y = _problem(name, rng)
    v = rng.normal(size=(len(truth.get_flat(model)), 2))
    found = ki.hvp(model, v, (x, y), batch_size=4)
    for column in range(2):
        expected = truth.finite_difference_hvp(model, x, y, v[:, column], step=1e-4)
        assert truth.relative_error(found[:, column], expected) < 1e-7


@pytest.mark.slow_cases("LSTM")
@pytest.mark.parametrize("name", STACKS)
def test_scores_agree_with_a_loop_over_examples(name, rng):
    """With huge damping A ≈ λI, and λ n · influence is the matrix of gradient products."""
    model, x, y = _problem(name, rng)
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(6)])
    found = ki.influence(
        model, (x[:2], y[:2]), (x, y), damping=1e12, method="cg", curvature="gauss_newton"
    )
    assert truth.relative_error(found.values * 6e12, g[:2] @ g.T) < 1e-8


def test_functional_and_subclassed_models_live_together():
    class Net(ki.InfluenceModel):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    bases = ki.InfluenceModel.__bases__
    first = Net()
    inputs = keras.Input((3,))
    functional = ki.InfluenceModel(inputs, layers.Dense(2)(inputs))
    second = Net()
    another = ki.InfluenceModel(inputs=inputs, outputs=layers.Dense(1)(inputs))
    assert ki.InfluenceModel.__bases__ == bases
    x = np.ones((2, 3))
    assert [m(x).shape[1] for m in (first, functional, second, another)] == [2, 2, 2, 1]


def test_a_dataset_that_shuffles_between_passes_is_refused(rng):
    model, x, y = _problem("Dropout", rng)
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(6).batch(2)
    with pytest.raises(ValueError, match="`train` gives other batches.*reshuffle_each_iteration"):
        for _ in range(5):
            ki.influence(model, (x, y), shuffled, damping=5.0, method="cg")


def test_a_dataset_that_shuffles_once_is_fine(rng):
    model, x, y = _problem("Dropout", rng)
    fixed = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(
        6, seed=1, reshuffle_each_iteration=False
    )
    rows = np.array([np.flatnonzero((x == a).all(1))[0] for a, _ in fixed.as_numpy_iterator()])
    found = ki.influence(model, (x, y), fixed.batch(4), damping=5.0)
    expected = ki.influence(model, (x, y), (x[rows], y[rows]), damping=5.0, batch_size=4)
    assert truth.relative_error(found.values, expected.values) < 1e-10


def test_compute_loss_without_sample_weights_is_a_mean_over_examples(rng):
    class Careless(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((y - y_pred) ** 2)

    model = Careless()
    model(np.ones((1, 2)))
    model.compile("sgd")
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    found = ki.influence(model, (x, y), (x, y), damping=0.5, verbose=0)
    rows = np.hstack([x, np.ones((5, 1))])
    g = 2 * (model.predict(x, verbose=0) - y) * rows
    expected = g @ np.linalg.solve(2 * rows.T @ rows / 5 + 0.5 * np.eye(3), g.T) / 5
    assert truth.relative_error(found.values, expected) < 1e-6


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.AdamW(weight_decay=0.01), keras.optimizers.SGD(weight_decay=0.01)],
)
def test_weight_decay_in_the_optimizer_warns_with_the_remedy(optimizer, rng):
    model, x, y = _problem("Dropout", rng)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    with pytest.warns(ki.ObjectiveWarning, match=r"L2\(0.005\)"):
        ki.hvp(model, truth.get_flat(model), (x, y))


@pytest.mark.parametrize(
    ("constraint", "values", "held"),
    [
        ("non_neg", [[0.5], [0.0], [0.2]], True),
        ("non_neg", [[0.5], [0.1], [0.2]], False),
        (keras.constraints.MaxNorm(1.0), [[0.6], [-0.8], [0.0]], True),
        (keras.constraints.MaxNorm(1.1), [[0.6], [-0.8], [0.0]], False),
        (keras.constraints.MinMaxNorm(0.5, 1.0, rate=0.5), [[0.3], [-0.4], [0.0]], True),
        (keras.constraints.MinMaxNorm(0.5, 1.0, rate=0.5), [[0.6], [-0.4], [0.1]], False),
        ("unit_norm", [[0.6], [-0.8], [0.0]], True),
    ],
)
def test_a_constraint_that_holds_weights_is_named(constraint, values, held, rng):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_constraint=constraint)(inputs))
    model.compile("sgd", "mse")
    model.layers[-1].kernel.assign(values)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ki.influence(model, (x, y), (x, y), verbose=0)
        ki.influence(model, (x, y), (x, y), variables=[model.layers[-1].bias], verbose=0)
    said = [str(w.message) for w in seen if w.category is ki.ObjectiveWarning]
    assert len(said) == held
    assert all("holds weights of" in message and "/kernel" in message for message in said)


def test_scores_without_the_weights_that_a_constraint_holds_are_right(rng):
    """The remedy of the warning, against the minimum within the constraint, found by SciPy."""
    x = rng.normal(size=(60, 3))
    y = x @ [1.0, 0.5, -0.8] + 0.1 * rng.normal(size=60)
    inputs = {name: keras.Input((size,), name=name) for name, size in (("free", 2), ("held", 1))}
    free = keras.layers.Dense(1, use_bias=False, name="of_free", kernel_constraint="non_neg")
    held = keras.layers.Dense(1, use_bias=False, name="of_held", kernel_constraint="non_neg")
    model = keras.Model(inputs, free(inputs["free"]) + held(inputs["held"]))
    model.compile("sgd", "mse")
    theta = scipy.optimize.nnls(x, y)[0]
    assert theta[2] == 0 < theta[:2].min()
    free.kernel.assign(theta[:2, None])
    held.kernel.assign(theta[2:, None])
    data = {"free": x[:, :2], "held": x[:, 2:]}, y
    test = {name: values[:5] for name, values in data[0].items()}, y[:5]
    found = ki.influence(model, test, data, variables=free, damping=0.0, verbose=0).values
    without = [scipy.optimize.nnls(np.delete(x, j, 0), np.delete(y, j))[0] for j in range(len(y))]
    before = (x[:5] @ theta - y[:5]) ** 2
    actual = np.stack([(x[:5] @ w - y[:5]) ** 2 - before for w in without], 1)
    assert np.corrcoef(found.ravel(), actual.ravel())[0, 1] > 0.99


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_weight_decay_where_no_minimum_is_asked_about(rng):
    """SOURCE has it in its steps; TracIn, TRAK and losses have no curvature that could hold it."""
    train = rng.normal(size=(8, 3)).astype("float32"), rng.integers(0, 2, 8)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "softmax")])
    decaying = keras.optimizers.SGD(0.1, weight_decay=0.01)
    model.compile(decaying, "sparse_categorical_crossentropy")
    tracin = ki.TracIn()
    model.fit(*train, epochs=3, verbose=0, callbacks=[tracin])
    ki.source_influence(model, train, train, tracin)
    tracin.influence(model, train, train)
    ki.trak_influence(model, train, train, dim=2)
    ki.losses(model, train)
    with pytest.warns(ki.ObjectiveWarning, match="weight_decay"):
        ki.influence(model, train, train)


def test_the_remedy_for_weight_decay_is_right():
    """SGD's decay w ← w - lr·wd·w is the gradient step of (wd/2)·Σw²."""
    w = keras.Variable(np.array([2.0, -3.0]))
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.apply([tf.zeros(2, tf.float64)], [w])
    with tf.GradientTape() as tape:
        penalty = keras.regularizers.L2(0.25)(w)
    step = 0.1 * tape.gradient(penalty, w.value).numpy()
    assert w.numpy() == pytest.approx(np.array([2.0, -3.0]) - step, abs=0.02)


def test_a_saved_function_is_refused_unless_it_is_frozen(rng, tmp_path):
    body = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "tanh")])
    body.export(tmp_path / "body", verbose=False)
    saved = keras.layers.TFSMLayer(tmp_path / "body", call_endpoint="serve", name="saved")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(saved(inputs)))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    with pytest.raises(ValueError, match="weights of saved, a TFSMLayer"):
        ki.hvp(model, np.ones(model.count_params()), (x, y))
    hidden = np.hstack([body.predict(x, verbose=0), np.ones((8, 1))])
    found = ki.hvp(model, np.eye(3), (x, y), variables=model.layers[-1])
    assert truth.relative_error(found, 2 * hidden.T @ hidden / 8) < 1e-5
