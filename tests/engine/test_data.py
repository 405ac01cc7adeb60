"""Every form of data gives the numbers of the plain arrays."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.data import batches as data_room
from tests import truth
from tests.truth import L2


@pytest.fixture
def problem(rng):
    x, y, w = rng.normal(size=(23, 4)), rng.integers(0, 3, 23), rng.uniform(0.5, 2, 23)
    model = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(x, y, 3, L2, w)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta) * w[:, None]
    expected = g[:5] @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 23
    return model, (x, y, w), expected


class PyData(keras.utils.PyDataset):
    def __init__(self, arrays, size, **kwargs):
        super().__init__(**kwargs)
        self.arrays, self.size = arrays, size

    def __len__(self):
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, i):
        return tuple(a[i * self.size : (i + 1) * self.size] for a in self.arrays)


FORMS = {
    "arrays": lambda d: d,
    "tensors": lambda d: tuple(tf.constant(a) for a in d),
    "lists as arrays": lambda d: tuple(np.array(a.tolist()) for a in d),
    "dataset": lambda d: tf.data.Dataset.from_tensor_slices(d).batch(6),
    "dataset with cache and prefetch": lambda d: (
        tf.data.Dataset.from_tensor_slices(d).cache().batch(10).prefetch(2)
    ),
    "dataset of unknown length": lambda d: (
        tf.data.Dataset.from_tensor_slices(d).filter(lambda *_: True).batch(7)
    ),
    "PyDataset": lambda d: PyData(d, 6),
    "PyDataset with workers": lambda d: PyData(d, 6, workers=2),
}


@pytest.mark.parametrize("method", ["direct", "cg"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_train_and_test(form, method, problem):
    model, arrays, expected = problem
    make = FORMS[form]
    test = make(tuple(a[:5] for a in arrays))
    method = ki.CG(tol=1e-10) if method == "cg" else method
    scores = ki.influence(model, test, make(arrays), damping=0.1, method=method)
    assert truth.relative_error(scores.values, expected) < 1e-8


@pytest.mark.parametrize("form", ["arrays", "dataset", "PyDataset with workers"])
def test_every_form_feeds_lissa(form, problem, rng):
    model, arrays, _ = problem
    v = rng.normal(size=15)
    hessian = truth.SoftmaxRegression(arrays[0], arrays[1], 3, L2, arrays[2]).hessian(
        truth.get_flat(model)
    )
    exact = np.linalg.solve(hessian + 0.3 * np.eye(15), v)
    solver = ki.LiSSA(batch_size=8, recursion_depth=200)
    found = ki.inverse_hvp(model, v, FORMS[form](arrays), method=solver, damping=0.3)
    assert truth.relative_error(found, exact) < 0.15


def test_nested_inputs_and_outputs(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    outputs = {
        "kind": keras.layers.Dense(3, "softmax", name="kind")(joined),
        "size": keras.layers.Dense(1, name="size")(joined),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    model.compile("sgd", losses, loss_weights={"kind": 1.0, "size": 0.5})
    x = {"a": rng.normal(size=(11, 3)), "b": rng.normal(size=(11, 2))}
    y = {"kind": rng.integers(0, 3, 11), "size": rng.normal(size=(11, 1))}
    flat = np.hstack([x["a"], x["b"], np.ones((11, 1))])
    kernels = {v.path: v.numpy() for v in model.trainable_variables}
    logits = flat @ np.vstack([kernels["kind/kernel"], kernels["kind/bias"]])
    p = truth.softmax(logits)
    kind_g = np.einsum("ni,nc->nic", flat, p - np.eye(3)[y["kind"]])
    size = flat @ np.vstack([kernels["size/kernel"], kernels["size/bias"]])
    size_g = 0.5 * 2 * (size - y["size"]) * flat
    order = [v.path for v in model.trainable_variables]
    parts = {
        "kind/kernel": kind_g[:, :5].reshape(11, -1),
        "kind/bias": kind_g[:, 5],
        "size/kernel": size_g[:, :5],
        "size/bias": size_g[:, 5:],
    }
    g = np.hstack([parts[path] for path in order])
    found = ki.influence(model, (x, y), (x, y), damping=1e12, method="cg", batch_size=4)
    assert truth.relative_error(found.values * 11e12, g @ g.T) < 1e-8


def test_iterating_gives_the_rows_in_order():
    batches = data_room.read((np.arange(10.0)[:, None], np.arange(10)), 4)
    assert (batches.n, len(batches)) == (10, 3)
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert np.concatenate([y for _, y in batches]).tolist() == list(range(10))


def test_sampler_visits_every_row_once_an_epoch():
    for source in (
        (np.arange(10.0)[:, None], np.arange(10)),
        tf.data.Dataset.from_tensor_slices((np.arange(10.0)[:, None], np.arange(10))).batch(3),
    ):
        sampler = data_room.read(source).sampler(5, seed=1)
        first, second = (np.concatenate([next(sampler)[1] for _ in range(2)]) for _ in range(2))
        assert sorted(first) == sorted(second) == list(range(10))
        assert first.tolist() != list(range(10))


def test_pandas_where_keras_takes_it(problem):
    import pandas

    model, (x, y, w), expected = problem
    frame, labels, weights = pandas.DataFrame(x), pandas.Series(y), pandas.Series(w)
    test = (frame[:5], labels[:5], weights[:5])
    scores = ki.influence(model, test, (frame, labels, weights), damping=0.1)
    assert truth.relative_error(scores.values, expected) < 1e-8


def test_a_dataset_is_never_held_in_memory(problem):
    """A stream of batches: no more than a few are alive at a time, however many there are."""
    import gc
    import weakref

    model, _, _ = problem
    alive, most = {}, 0

    class Traced(np.ndarray):
        pass

    def stream():
        nonlocal most
        rng = np.random.default_rng(0)
        for _ in range(60):
            x = rng.normal(size=(50, 4)).view(Traced)
            alive[id(x)] = None
            weakref.finalize(x, alive.pop, id(x), None)
            most = max(most, len(alive))
            yield x, rng.integers(0, 3, 50)

    signature = (tf.TensorSpec((None, 4), tf.float64), tf.TensorSpec((None,), tf.int64))
    train = tf.data.Dataset.from_generator(stream, output_signature=signature)
    test = next(iter(train))
    gc.collect()
    scores = ki.influence(model, tuple(t.numpy() for t in test), train, damping=0.1)
    assert scores.values.shape == (50, 3000)
    assert most <= 5


def test_the_user_arrays_are_not_changed(problem):
    model, arrays, _ = problem
    copies = [a.copy() for a in arrays]
    ki.influence(model, arrays, arrays, damping=0.1)
    assert all((a == b).all() for a, b in zip(arrays, copies))
