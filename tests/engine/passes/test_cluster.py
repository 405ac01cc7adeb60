"""Passes in the processes of a cluster: closed forms, the same bits, and a model's way there."""

import functools
import threading

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence.engine.passes.journey import JourneyError
from keras_influence.engine.problem import Problem
from tests import truth
from tests.conftest import set_precision
from tests.truth import L2

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

N, DAMPING = 60, 0.1
QUIET = {"damping": DAMPING, "verbose": 0}
SIZES = (7, 20, 1, 10, 3, 4, 3, 2, 2, 8)


@pytest.fixture(scope="module")
def cluster():
    """Two processes on this machine, one of two threads."""
    options = {"dashboard_address": None, "memory_limit": 0, "threads_per_worker": 2}
    with distributed.LocalCluster(n_workers=2, **options) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def problem(rng):
    x, y = rng.normal(size=(N, 4)), rng.integers(0, 3, N)
    model = truth.softmax_model(4, 3, L2)
    train = da.from_array(x, chunks=(SIZES, 4)), da.from_array(y, chunks=20)
    return model, train, truth.SoftmaxRegression(x, y, 3, L2)


def answers(model, train):
    """What questions answer whose passes go to the chunks, with what they should answer."""
    test = tuple(part[5:9] for part in train)
    vectors = np.linspace(-1, 1, 45).reshape(15, 3)
    return {
        "products": ki.hvp(model, vectors, train),
        "losses": ki.losses(model, train),
        "scores": ki.influence(model, test, train, method=ki.CG(tol=1e-10), **QUIET).values,
        "self": ki.self_influence(model, train, **QUIET),
        "groups": ki.group_influence(model, test, train, [[0, 59], [8]], order=2, **QUIET),
        "ekfac": ki.influence(model, test, train, method="ekfac", **QUIET).values,
        "two-level": ki.inverse_hvp(
            model, vectors, train, method=ki.CG(tol=1e-10, preconditioner=ki.TwoLevel()), **QUIET
        ),
        "lissa": ki.inverse_hvp(
            model, vectors, train, method=ki.LiSSA(batch_size=20, max_passes=20, tol=0.1), **QUIET
        ),
    }


@pytest.mark.slow
def test_answers_are_true_and_the_same_bits_on_all_schedulers(problem, client):
    model, train, closed = problem
    there = answers(model, train)
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            here = answers(model, train)
        assert [name for name in here if not np.array_equal(here[name], there[name])] == []
    theta = truth.get_flat(model)
    g, h = closed.example_gradients(theta), closed.hessian(theta)
    vectors = np.linspace(-1, 1, 45).reshape(15, 3)
    inverse = np.linalg.inv(h + DAMPING * np.eye(15))
    assert truth.relative_error(there["products"], h @ vectors) < 1e-14
    assert truth.relative_error(there["losses"], closed.losses(theta)) < 1e-14
    assert truth.relative_error(there["scores"], g[5:9] @ inverse @ g.T / N) < 1e-7
    assert truth.relative_error(there["self"], np.einsum("ip,pq,iq->i", g, inverse, g)) < 1e-7
    assert truth.relative_error(there["two-level"], inverse @ vectors) < 1e-7
    assert truth.relative_error(there["lissa"], inverse @ vectors) < 0.2


def test_a_model_and_its_kernels_are_made_once_in_a_process(problem, client):
    model, train, _ = problem
    operator = ki.operator(model, train)
    seen = []
    for _ in range(3):
        operator.matmat(np.eye(15)[:2])
        seen.append(client.run(_made))
    assert seen[0] == seen[1] == seen[2]


def test_what_a_pass_costs_knows_of_the_workers(problem, client):
    model, train, _ = problem
    assert Problem(model, train).costs()["workers"] == 4  # Threads, for ten chunks.
    few = tuple(part[:27] for part in train)
    assert Problem(model, few).costs()["workers"] == 2  # There are no more chunks.
    assert Problem(model, tuple(map(np.asarray, train))).costs()["workers"] == 0
    with dask.config.set(scheduler="threads"):
        assert Problem(model, train).costs()["workers"] == 0


def _made():
    """Models and objectives that have arrived in a process, and what they have traced."""
    from keras_influence.engine.passes import journey

    objectives = [found for key, found in journey._made.items() if isinstance(key, tuple)]
    kernels = [id(known) for one in objectives for known in one.kernels._compiled.values()]
    return list(map(str, journey._made)), kernels


def test_weights_that_change_between_passes_are_those_of_now(problem, client, rng):
    model, train, closed = problem
    operator = ki.operator(model, train)
    v = rng.normal(size=(1, 15))
    for _ in range(2):
        theta = rng.normal(size=15)
        truth.set_flat(model, theta)
        assert truth.relative_error(operator.matmat(v), v @ closed.hessian(theta)) < 1e-13


def test_a_model_of_the_users_own_classes(client, rng):
    """Classes that no worker can import, an adapted layer, and weights that are not trained."""

    class Scaled(keras.layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x):
            return keras.ops.tanh(x) * self.factor

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    def loss(y, y_pred):
        return keras.ops.square(keras.ops.reshape(y, (-1,)) - y_pred[:, 0]) ** 1.5

    x, y = rng.normal(3.0, 2.0, size=(40, 3)), rng.normal(size=40)
    adapted = keras.layers.Normalization()
    adapted.adapt(x)
    layers = [keras.layers.Dense(4), Scaled(0.7), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((3,)), adapted, *layers, keras.layers.Dense(1)])
    model.compile("adam", loss, metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    v = rng.normal(size=model.count_params() - 8 - sum(w.numpy().size for w in adapted.weights))
    found = ki.hvp(model, v, (da.from_array(x, chunks=(11, 3)), y))
    assert truth.relative_error(found, truth.finite_difference_hvp(model, x, y, v)) < 1e-6


def test_a_loss_of_the_models_own_class(client, rng):
    """A `compute_loss` that is the user's: how it is read was found out here, and goes along."""

    class Cubed(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            each = keras.ops.abs(keras.ops.reshape(y, (-1,)) - y_pred[:, 0]) ** 3
            return keras.ops.mean(each if sample_weight is None else each * sample_weight)

    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    model = Cubed([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd")
    v = rng.normal(size=3)
    found = ki.hvp(model, v, (da.from_array(x, chunks=(9, 3)), y))
    residual = np.abs(y - x @ truth.get_flat(model))
    assert truth.relative_error(found, 6 * (x.T * residual) @ x @ v / 40) < 1e-10


def test_settings_of_keras_go_along(client, rng):
    set_precision("float32")
    x, y = rng.normal(size=(30, 4)).astype("float32"), rng.integers(0, 3, 30)
    model = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(x.astype(float), y, 3, L2)
    v = rng.normal(size=15)
    found = ki.hvp(model, v, (da.from_array(x, chunks=(8, 4)), y))
    expected = closed.hessian(truth.get_flat(model)) @ v
    assert found.dtype == np.float32
    assert truth.relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_masks_are_counted_where_the_data_are(client, rng):
    """A loss over the steps that a mask leaves: what it is divided by is a sum over all chunks."""
    tokens = rng.integers(0, 5, (30, 6))
    tokens[:, 0] = 1
    labels = rng.integers(0, 3, (30, 6))
    inputs = keras.Input((6,))
    embedded = keras.layers.Embedding(5, 2, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(embedded))
    model.compile("sgd", "sparse_categorical_crossentropy")
    v = rng.normal(size=model.count_params())
    chunks = da.from_array(tokens, chunks=(9, 6)), da.from_array(labels, chunks=(9, 6))
    found = ki.hvp(model, v, chunks)
    assert truth.relative_error(found, truth.finite_difference_hvp(model, tokens, labels, v)) < 1e-7


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_said_here(problem, client, rng):
    model, (x, y), _ = problem
    fresh = functools.partial(np.random.default_rng, None)
    noise = [
        da.from_delayed(
            dask.delayed(lambda: fresh().normal(size=(30, 4)), pure=False)(), (30, 4), float
        )
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match="`train` gives other batches at each pass"):
        ki.hvp(model, np.ones(15), (da.concatenate(noise), y))
    bad = da.where(da.arange(N, chunks=20)[:, None] == 33, np.nan, x)
    with pytest.raises(ValueError, match="`train` has NaN.* in x, first in example 33 "):
        ki.hvp(model, np.ones(15), (bad, y))


STRETCH = 0.5  # A global that functions of the models below read.


class Scaled(keras.layers.Layer):
    """No `get_config`, and an argument that none could have."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="random_normal")

    def call(self, x):
        return self.function(x * (1 + self.scale))


class Net(keras.Model):
    """No `get_config`; layers in lists and dictionaries, one of them shared."""

    def __init__(self, width, function, held=None):
        super().__init__()
        self.blocks = []
        self.head = keras.layers.Dense(1)
        shared = keras.layers.Dense(width)
        self.blocks.extend([keras.layers.Dense(width), shared, Scaled(function)])
        self.named = {"again": shared, "factor": 2.0}
        self.held = held

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.named["again"](x) * self.named["factor"])


@pytest.mark.slow
def test_models_of_classes_without_a_config_and_lambdas_on_globals(client, rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    data = da.from_array(x, chunks=(6, 3)), y
    layers = [keras.layers.Dense(3, lambda t: keras.ops.tanh(STRETCH * t))]
    layers += [keras.layers.Lambda(lambda t: t * STRETCH), keras.layers.Dense(1)]
    for model in (
        Net(3, lambda t: keras.ops.tanh(STRETCH * t)),
        keras.Sequential([keras.Input((3,)), *layers]),
    ):
        model.compile("sgd", lambda y, y_pred: keras.ops.square(y_pred[:, 0] - STRETCH * y[:, 0]))
        model.fit(x, y, verbose=0)
        v = rng.normal(size=model.count_params())
        expected = truth.finite_difference_hvp(model, x, y[:, None], v)
        assert truth.relative_error(ki.hvp(model, v, data), expected) < 1e-7


@pytest.mark.slow
def test_a_model_that_cannot_be_made_again_is_refused_with_the_way_out(client, rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    data = da.from_array(x, chunks=(6, 3)), y
    model = Net(3, keras.ops.tanh, held=threading.Lock())
    model.compile("sgd", "mse")
    model(x)
    v = rng.normal(size=model.count_params())
    with pytest.raises(JourneyError, match="cannot be sent to the workers.*scheduler='threads'"):
        ki.hvp(model, v, data)
    with dask.config.set(scheduler="threads"):
        found = ki.hvp(model, v, data)
    expected = truth.finite_difference_hvp(model, x, y[:, None], v)
    assert truth.relative_error(found, expected) < 1e-7
