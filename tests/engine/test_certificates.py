"""What is believed of a model is certified where it is used: products, the fast path, fresh traces."""

import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.problem import Problem
from tests import truth
from tests.pool import pooled

layers, ops = keras.layers, keras.ops


def _compiled(outputs, inputs, loss="sparse_categorical_crossentropy"):
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss)
    return model


class Stopped(layers.Layer):
    """The square, with a gradient whose own gradient is zero."""

    def call(self, x):
        @tf.custom_gradient
        def square(x):
            return x**2, lambda upstream: 2 * upstream * tf.stop_gradient(x)

        return square(x)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_wrong_second_derivative_is_refused_and_named(columns, precision, rng):
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((6,))
    hidden = Stopped(name="stopped")(layers.Dense(4, "tanh")(inputs))
    model = _compiled(layers.Dense(3, "softmax")(hidden), inputs)
    data = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
    with pytest.raises(ValueError, match="wrong second derivative.*layer stopped"):
        ki.hvp(model, rng.normal(size=(model.count_params(), columns)), data)


class Detached(layers.Layer):
    """The identity, whose gradient passes on no derivative of what comes from above."""

    def call(self, x):
        @tf.custom_gradient
        def identity(x):
            return tf.identity(x), tf.stop_gradient

        return identity(x)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("way", ["last", "frozen head", "chosen"])
def test_a_gauss_newton_matrix_that_is_zero_by_mistake_is_refused(way, columns, rng):
    """A zero matrix is as symmetric as any. All weights are below where derivatives are lost."""
    inputs = keras.Input((6,))
    first = layers.Dense(4, "tanh")
    hidden = Detached(name="detached")(first(inputs))
    head = layers.Dense(3, trainable=way != "frozen head")
    model = _compiled(hidden if way == "last" else head(hidden), inputs, "mse")
    x = rng.normal(size=(30, 6))
    data = x, rng.normal(size=(30, 4 if way == "last" else 3))
    options = {"variables": first} if way == "chosen" else {}
    with pytest.raises(ValueError, match="does not agree with differences"):
        ki.hvp(model, np.ones((28, columns)), data, curvature="gauss_newton", **options)


def test_a_gauss_newton_matrix_may_be_zero(rng):
    """No example is on the way through a unit that is dead for all of them."""
    inputs = keras.Input((6,))
    model = _compiled(layers.Dense(4, "relu", bias_initializer="zeros")(inputs), inputs, "mse")
    model.set_weights([-np.ones((6, 4)), np.zeros(4)])
    data = rng.uniform(1, 2, (30, 6)), rng.normal(size=(30, 4))
    assert not np.any(ki.hvp(model, np.ones((28, 3)), data, curvature="gauss_newton"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "elu", "softsign"])
def test_right_products_pass_also_beside_kinks(activation, precision, rng):
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((6,))
    hidden = layers.LayerNormalization()(layers.Dense(30, activation)(inputs))
    model = _compiled(layers.Dense(3, "softmax")(hidden), inputs)
    data = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
    for curvature in ("hessian", "gauss_newton"):
        assert ki.hvp(model, np.ones(model.count_params()), data, curvature=curvature).any()


class Committed(layers.Layer):
    """Adds the squared distance to the nearest code, of which it may hold one side for constant."""

    def __init__(self, stopped, **options):
        super().__init__(**options)
        self.stopped = stopped

    def build(self, shape):
        self.codes = self.add_weight(shape=(4, shape[-1]), name="codes")

    def call(self, x):
        distances = ops.sum((x[:, None] - self.codes) ** 2, -1)
        nearest = ops.take(self.codes, ops.argmin(distances, -1), axis=0)
        stop = ops.stop_gradient if self.stopped else (lambda t: t)
        self.add_loss(ops.mean(ops.sum((stop(nearest) - x) ** 2, -1)))
        return x


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("stopped", [True, False])
def test_what_layers_add_and_hold_for_constant_is_warned_of(
    stopped, precision, columns, rng, recwarn
):
    """Once; beside a Gauss-Newton matrix. For the Hessian it is refused, as a wrong derivative."""
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    inputs = keras.Input((6,))
    hidden = Committed(stopped)(layers.Dense(3, "tanh")(inputs))
    model = _compiled(layers.Dense(3, "softmax")(hidden), inputs)
    data = rng.normal(size=(30, 6)), rng.integers(0, 3, 30)
    v = rng.normal(size=(sum(w.shape.num_elements() for w in model.trainable_weights), columns))
    operator = Problem(model, data).curvature("gauss_newton")
    warnings.simplefilter("always")
    for rows in (v.T, v.T[:1], v.T):
        operator.matmat(rows)
    found = [w for w in recwarn if "what layers add to the loss" in str(w.message)]
    assert len(found) == stopped
    assert all("stop_gradient" in str(w.message) for w in found)
    if stopped:
        with pytest.raises(ValueError, match="wrong second derivative"):
            ki.hvp(model, v, data, curvature="hessian")


class Tied(layers.Layer):
    def __init__(self, other, **options):
        super().__init__(**options)
        self.other = other

    def call(self, h):
        return ops.matmul(h, ops.transpose(self.other.kernel))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.other.kernel.shape[0])


@pytest.mark.parametrize("blank", [0, 8])
def test_tied_weights_also_where_the_first_rows_say_nothing(blank, rng):
    inputs = keras.Input((5,))
    encoder = layers.Dense(3, "tanh", use_bias=False)
    model = _compiled(Tied(encoder)(encoder(inputs)), inputs, "mse")
    x = rng.normal(size=(20, 5))
    x[:blank] = 0
    problem = Problem(model, (x, x), batch_size=4)
    expected = np.array([truth.gradient(model, x[[i]], x[[i]]) for i in range(20)])
    assert truth.relative_error(problem.example_gradients(problem.train), expected) < 1e-9
    for count in (1, 3):
        found = problem.scores(expected[-count:])
        assert truth.relative_error(found, expected[-count:] @ expected.T / 20) < 1e-9


class Cell(layers.Layer):
    """A recurrent cell that holds a dense layer, which is then called in a loop."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = self.state_size = self.output_size = units
        self.inner = layers.Dense(units, "tanh")

    def build(self, shape):
        self.inner.build((None, shape[-1] + self.units))
        self.built = True

    def call(self, inputs, states):
        h = self.inner(ops.concatenate([inputs, states[0]], axis=-1))
        return h, [h]


@pytest.mark.slow
def test_layers_inside_a_loop(rng):
    inputs = keras.Input((4, 2))
    model = _compiled(layers.Dense(3, "softmax")(layers.RNN(Cell(3))(inputs)), inputs)
    x, y = rng.normal(size=(10, 4, 2)), rng.integers(0, 3, 10)
    g = np.array([truth.gradient(model, x[[i, i]], y[[i, i]]) for i in range(10)])
    p = model.count_params()
    hessian = truth.finite_difference_hessian(model, x, y)
    solved = np.linalg.solve(hessian + np.eye(p), g.T)
    options = {"damping": 1.0, "curvature": "hessian", "method": "direct", "verbose": 0}
    found = ki.influence(model, (x[:3], y[:3]), (x, y), **options).values
    assert truth.relative_error(found, g[:3] @ solved / 10) < 1e-6
    own = ki.self_influence(model, (x, y), **options)
    assert truth.relative_error(own, np.einsum("ij,ji->i", g, solved)) < 1e-6
    scores = ki.influence(model, (x[:3], y[:3]), (x, y), damping=1.0, method="ekfac", verbose=0)
    assert scores.details["parameters_outside"] == 18  # Those of the layer in the loop.


class Branch(layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), initializer="glorot_uniform")
        self.flag = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x):
        w = tf.convert_to_tensor(self.w)
        return tf.cond(self.flag > 0, lambda: tf.tanh(x @ w), lambda: x @ w)

    def compute_output_shape(self, shape):
        return (shape[0], 3)


def test_many_vectors_through_a_branch(rng):
    inputs = keras.Input((2,))
    model = _compiled(layers.Dense(3, "softmax")(Branch()(inputs)), inputs)
    x, y = rng.normal(size=(9, 2)), rng.integers(0, 3, 9)
    vectors = rng.normal(size=(len(truth.get_flat(model)), 3))
    expected = [truth.finite_difference_hvp(model, x, y, v) for v in vectors.T]
    assert truth.relative_error(ki.hvp(model, vectors, (x, y)).T, np.array(expected)) < 1e-7


class Compiled(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.b = layers.Dense(3, "tanh"), layers.Dense(2, "softmax")

    @tf.function
    def call(self, x):
        return self.b(self.inner(x))

    @tf.function
    def inner(self, x):
        return self.a(x)


def test_a_call_compiled_by_the_user(rng):
    x, y = rng.normal(size=(10, 3)), rng.integers(0, 2, 10)
    model = Compiled()
    # What Keras builds inside a `tf.function` keeps its first weights for batches of that size.
    model(x[:4])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    for _ in range(2):
        v = rng.normal(size=model.count_params())
        expected = truth.finite_difference_hvp(model, x, y, v)
        assert truth.relative_error(ki.hvp(model, v, (x, y)), expected) < 1e-6
        before = model.get_weights()
        model.fit(x, y, epochs=2, verbose=0)
        assert not np.array_equal(before[0], model.get_weights()[0])


def test_a_target_that_reads_what_has_changed(rng):
    inputs = keras.Input((4,))
    model = _compiled(layers.Dense(3)(inputs), inputs, "mse")
    x, y = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
    chosen = {"class": 0}

    def logit(x, y, y_pred):
        return y_pred[:, chosen["class"]]

    for k in range(3):
        chosen["class"] = k
        found = ki.influence(model, (x[:2], y[:2]), (x, y), target=logit, damping=1.0, verbose=0)
        # The derivative of the k-th output in the weights of a linear model, and its Hessian.
        rows = np.einsum("bi,jk->bkij", np.hstack([x, np.ones((12, 1))]), np.eye(3))
        rows = rows.reshape(12, 3, 15)
        hessian = 2 / 3 * np.einsum("bkp,bkq->pq", rows, rows) / 12
        g = np.einsum("bkp,bk->bp", rows, 2 / 3 * (model.predict(x, verbose=0) - y))
        expected = rows[0, k] @ np.linalg.solve(hessian + np.eye(15), g.T) / 12
        assert truth.relative_error(found.values[0], expected) < 1e-6


@pooled
def _rooted():
    """√(x₁ + x₂), without a finite gradient at x = 0."""
    inputs = keras.Input((2,))
    model = _compiled(ops.sqrt(layers.Dense(1, use_bias=False)(inputs)), inputs, "mse")
    model.set_weights([np.ones((2, 1))])
    return model


def test_an_example_without_a_finite_gradient_is_named(rng):
    model = _rooted()
    x, y = rng.uniform(1, 2, (20, 2)), rng.normal(size=(20, 1))
    x[13] = 0
    with pytest.raises(ValueError, match="example 13 of `test`"):
        ki.influence(model, (x, y), (x[:10], y[:10]), damping=1.0, verbose=0)


@pytest.mark.parametrize(
    "method", ["auto", "direct", "cg", ki.CG(preconditioner=None), "lissa", "ekfac", "minres"]
)
def test_a_training_example_without_a_finite_gradient_is_named_by_all_solvers(method, rng):
    model = _rooted()
    x, y = rng.uniform(1, 2, (60, 2)), rng.normal(size=(60, 1))
    x[43] = 0
    with pytest.raises(ValueError, match="example 43 of `train`"):
        ki.influence(model, (x[:2], y[:2]), (x, y), damping=1.0, method=method, verbose=0)


def test_a_label_out_of_range_is_said_wherever_it_stands(rng):
    model = truth.softmax_model(4, 3)
    x, y = rng.normal(size=(100, 4)), rng.integers(0, 3, 100)
    bad = y.copy()
    bad[90] = 3
    for test, train, name in (((x, y), (x, bad), "train"), ((x, bad), (x, y), "test")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            ki.influence(model, test, train, verbose=0)


def test_what_fails_on_bad_labels_is_not_kept_for_good_ones(rng):
    """Vectors are taken one by one only where the model asks for it."""
    model = truth.softmax_model.fresh(4, 3)
    x, y = rng.normal(size=(100, 4)), rng.integers(0, 3, 100)
    bad = y.copy()
    bad[90] = 3
    with pytest.raises(ValueError, match="`train`"):
        Problem(model, (x, bad)).curvature("gauss_newton").matmat(rng.normal(size=(2, 15)))
    problem = Problem(model, (x, y))
    vectors = rng.normal(size=(2, 15))
    found = problem.curvature("gauss_newton").matmat(vectors)
    expected = truth.SoftmaxRegression(x, y, 3, 0).hessian(truth.get_flat(model))
    assert truth.relative_error(found, vectors @ expected) < 1e-9
    assert not problem.objective.kernels.loop


@pytest.mark.slow
def test_threads_get_the_answers_of_one(rng):
    inputs = keras.Input((6,))
    hidden = layers.LayerNormalization()(layers.Dense(5, "tanh")(inputs))
    model = _compiled(layers.Dense(3, "softmax")(hidden), inputs)
    x, y = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    g = np.array([truth.gradient(model, x[[i, i]], y[[i, i]]) for i in range(40)])
    before = [dict(vars(layer)) for layer in model.layers]
    found, errors = {}, []

    def ask(k):
        try:
            # With so much damping the matrix is the identity: the truth needs no curvature.
            found[k] = ki.influence(
                *(model, (x[k : k + 2], y[k : k + 2]), (x, y)),
                damping=1e9,
                method=("cg", "direct")[k % 2],
                verbose=0,
            ).values
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for k, values in found.items():
        assert truth.relative_error(values * 40e9, g[k : k + 2] @ g.T) < 1e-6
    assert [list(a) for a in before] == [list(vars(layer)) for layer in model.layers]
