"""Positions, subsets and minibatches of every form of batches, against the arrays they were cut from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.data import batches as data_room
from tests import truth
from tests.truth import L2

SIZES = {
    "alike": (4, 4, 2),
    "first of one": (1, 5, 4),
    "first empty": (0, 6, 4),
    "middle empty": (5, 0, 5),
    "last empty": (6, 4, 0),
    "many empty": (0, 0, 3, 0, 7, 0),
}


def cut(arrays, sizes):
    """A `tf.data.Dataset` with batches of these sizes, some empty, that gives no length."""

    def batches():
        stop = 0
        for size in sizes:
            start, stop = stop, stop + size
            yield tuple(a[start:stop] for a in arrays)

    signature = tuple(tf.TensorSpec([None, *a.shape[1:]], a.dtype) for a in arrays)
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def widening(rng, count, batch_size):
    """Sequences of growing length as a padded dataset, and its rows with the padding."""
    sequences = [rng.normal(size=(2 + i // 3, 2)) for i in range(count)]
    labels = rng.integers(0, 3, count)
    dataset = tf.data.Dataset.from_generator(
        lambda: zip(sequences, labels),
        output_signature=(tf.TensorSpec([None, 2], tf.float64), tf.TensorSpec([], tf.int64)),
    ).padded_batch(batch_size)
    rows = [row for x, _ in dataset.as_numpy_iterator() for row in x]
    return dataset, rows, labels


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_positions_and_counts(sizes):
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    batches = data_room.read(cut((x, y), sizes))
    assert batches.n == 10 and len(batches) == sum(size > 0 for size in sizes)
    for _ in range(2):
        parts = [(where, part) for where, part in batches.enumerated()]
        assert all((part[1] == y[where]).numpy().all() for where, part in parts)
        assert [w.start for w, _ in parts[1:]] == [w.stop for w, _ in parts[:-1]]
        assert (parts[0][0].start, parts[-1][0].stop) == (0, 10)


@pytest.mark.parametrize("count", [1, 3, 7, 10, 64])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_head_is_not_cut_short_by_a_small_first_batch(sizes, count):
    x = np.arange(10.0)[:, None]
    for source in ((x, x), cut((x, x), sizes)):
        assert (data_room.read(source).head(count)[0].numpy() == x[:count]).all()


@pytest.mark.parametrize("method", ["direct", "cg"])
@pytest.mark.parametrize("sizes", [(0, 11, 12), (11, 0, 12), (23, 0)])
def test_empty_batches_change_no_score(sizes, method, rng):
    x, y = rng.normal(size=(23, 4)), rng.integers(0, 3, 23)
    model = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta)
    expected = g @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 23
    method = ki.CG(tol=1e-10) if method == "cg" else method
    data = cut((x, y), sizes)
    found = ki.influence(model, data, data, damping=0.1, method=method, verbose=0).values
    assert truth.relative_error(found, expected) < 1e-8


INDICES = {
    "one": [3],
    "last": [9],
    "shuffled": [7, 0, 9, 1, 3],
    "twice": [4, 4, 0, 9, 0],
    "all backwards": list(range(9, -1, -1)),
}


@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
def test_a_subset_keeps_the_order_that_was_asked_for(indices, rng):
    x, y = rng.normal(size=(10, 2)), np.array([f"label {i}" for i in range(10)])
    for source in (
        (x, tf.constant(y)),
        cut((x, np.arange(10)), (4, 0, 5, 1)),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3),
    ):
        subset = data_room.read(source, name="train").subset(np.array(indices))
        assert subset.n == len(indices)
        found = np.concatenate([part[0].numpy() for part in subset])
        assert (found == x[indices]).all()


@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
def test_a_subset_of_batches_of_different_widths(indices, rng):
    dataset, rows, labels = widening(rng, 10, 3)
    subset = data_room.read(dataset).subset(np.array(indices))
    found = [row.numpy() for x, _ in subset for row in x]
    assert subset.n == len(indices) and len(found) == len(indices)
    assert all(np.array_equal(a, rows[i]) for a, i in zip(found, indices))
    assert np.concatenate([y for _, y in subset]).tolist() == labels[indices].tolist()


def test_a_subset_of_a_subset(rng):
    dataset, rows, _ = widening(rng, 10, 3)
    subset = data_room.read(dataset).subset(np.array([9, 2, 5, 0])).subset(np.array([3, 0, 2]))
    found = [row.numpy() for x, _ in subset for row in x]
    assert all(np.array_equal(a, rows[i]) for a, i in zip(found, [0, 9, 5]))


def test_every_question_takes_batches_of_different_widths(rng):
    """A mean over the padded sequence and a softmax layer: closed forms of the means."""
    dataset, rows, labels = widening(rng, 20, 6)
    inputs = keras.Input((None, 2))
    pooled = keras.layers.GlobalAveragePooling1D()(inputs)
    dense = keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(L2))
    model = keras.Model(inputs, dense(pooled))
    model.compile("sgd", "sparse_categorical_crossentropy")
    means = np.array([row.mean(0) for row in rows])
    closed = truth.SoftmaxRegression(means, labels, 3, L2)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta)
    solved = np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(9), g.T)
    options = {"damping": 0.1, "method": "direct", "verbose": 0}
    scores = ki.influence(model, dataset, dataset, **options).values
    assert truth.relative_error(scores, g @ solved / 20) < 1e-8
    asked = [19, 0, 7, 7, 1]
    own = ki.self_influence(model, dataset, indices=asked, **options)
    assert truth.relative_error(own, np.sum(g * solved.T, axis=1)[asked]) < 1e-8
    groups = ki.group_influence(model, dataset, dataset, [[0, 19], [7]], **options)
    expected = np.stack([(g @ solved)[:, s].sum(1) for s in ([0, 19], [7])], axis=1) / 20
    assert truth.relative_error(groups, expected) < 1e-8
    found = ki.inverse_hvp(
        model, g[0], dataset, method=ki.LiSSA(batch_size=6, recursion_depth=300), damping=0.3
    )
    exact = np.linalg.solve(closed.hessian(theta) + 0.3 * np.eye(9), g[0])
    assert truth.relative_error(found, exact) < 0.15


def forms(rng):
    """Data that number their rows in y, in all the ways that minibatches are drawn."""
    x, y = np.arange(12.0)[:, None], np.arange(12)
    texts = np.array([[f"text {i}"] for i in range(12)])
    dataset, _, _ = widening(rng, 12, 5)
    numbered = tf.data.Dataset.zip(dataset.map(lambda x, _: x), cut((y,), (5, 5, 2)))
    return {
        "arrays": (x, y),
        "strings": (tf.constant(texts), y),
        "sparse": (tf.sparse.from_dense(x), y),
        "dataset": cut((x, y), (4, 0, 8)).cache(),
        "dataset of strings": tf.data.Dataset.from_tensor_slices((texts, y)).batch(5),
        "dataset of sparse": tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(
            5
        ),
        "widths": numbered.map(lambda x, y: (x, y[0])).cache(),
    }


FORMS = [
    "arrays",
    "strings",
    "sparse",
    "dataset",
    "dataset of strings",
    "dataset of sparse",
    "widths",
]


def labels_of(sampler, count):
    return [next(sampler)[1].numpy().tolist() for _ in range(count)]


@pytest.mark.parametrize("form", FORMS)
def test_a_sampler_repeats_itself_and_prefers_no_example(form, rng):
    batches = data_room.read(forms(rng)[form])
    first, again, other = (labels_of(batches.sampler(4, seed), 8) for seed in (3, 3, 4))
    assert first == again != other
    draws, many = 400, batches.sampler(4, 5)
    mean = np.zeros(12)
    for _ in range(draws):
        some = next(many)[1].numpy()
        assert len(set(some)) == len(some)
        mean += np.bincount(some, minlength=12) / len(some)
    # A mean of `draws` numbers between 0 and 1/2, of mean 1/12: five standard errors.
    assert np.abs(mean / draws - 1 / 12).max() < 5 * np.sqrt(1 / 12 * 0.5 / draws)


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_of_a_minibatch_belong_together(form, rng):
    source = forms(rng)[form]
    batches = data_room.read(source)
    rows = {int(y): x for part in batches for x, y in zip(part[0].numpy(), part[1].numpy())}
    sampler = batches.sampler(4, 0)
    for _ in range(20):
        x, y = next(sampler)
        assert all(np.array_equal(a, rows[int(i)]) for a, i in zip(x.numpy(), y.numpy()))
