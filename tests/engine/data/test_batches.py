"""Positions, subsets and minibatches of every form of batches, against the arrays they were cut from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.data import batches as data_room
from keras_influence.engine.problem import Problem
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


@pytest.fixture(params=["held", "streamed"])
def kept(request, monkeypatch):
    """Whether a small dataset is held in memory, or read anew for each pass as a large one is."""
    if request.param == "streamed":
        monkeypatch.setattr(data_room, "_SMALL", -1)
    return request.param


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1,) * 10, [7, 3]),
        ((4, 4, 2), [4, 6]),
        ((1, 5, 4), [6, 4]),
        ((0, 3, 0, 4, 3), [7, 3]),
        ((8, 2), [8, 2]),
        ((2, 8), [2, 8]),
        ((10,), [10]),
    ],
)
def test_neighbours_are_joined_up_to_so_many_examples(sizes, expected, kept):
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    batches = data_room.read(cut((x, y), sizes)).joined(7, ((2,), ()))
    for _ in range(2):
        found = list(batches)
        assert [len(part[1]) for part in found] == expected
        assert (np.concatenate([part[1] for part in found]) == y).all()
        assert (np.concatenate([part[0] for part in found]) == x).all()
    assert (batches.n, len(batches), batches.largest) == (10, len(expected), max(expected))
    assert batches.subset([9, 0]).head(2)[1].numpy().tolist() == [9, 0]
    assert sorted(next(batches.sampler(10, seed=1))[1].numpy()) == list(range(10))


def test_rows_of_several_widths_are_joined_with_their_like(kept, rng):
    dataset, rows, labels = widening(rng, 24, 2)
    batches = data_room.read(dataset)
    joined = batches.joined(100, ((20, 2), ()))
    assert len(batches) == 12 and not joined.alike
    assert [x.shape[1] for x, _ in joined] == sorted({len(row) for row in rows})
    assert all((a == b).all() for a, b in zip((r.numpy() for x, _ in joined for r in x), rows))
    assert np.concatenate([y for _, y in joined]).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("shape", "expected"), [((3,), [9]), ((4,), [9]), ((8,), [4, 4, 1]), ((2, 8), [1] * 9)]
)
def test_of_wider_rows_fewer_are_joined(shape, expected, kept):
    batches = data_room.read(cut((np.zeros((9, *shape)), np.arange(9)), (1,) * 9))
    assert [len(part[1]) for part in batches.joined(16, ((4,), ()))] == expected


def test_rows_wider_than_those_that_were_looked_at_are_not_joined_without_end(monkeypatch):
    monkeypatch.setattr("keras_influence.engine.layers.footprint._BATCH", 2**12)
    inputs = keras.Input((None, 1))
    outputs = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")

    def batches():
        for count, width in [(8, 2)] * 20 + [(1, 64)] * 40:
            yield np.ones((count, width, 1)), np.ones((count, 1))

    signature = tf.TensorSpec([None, None, 1]), tf.TensorSpec([None, 1])
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    problem = Problem(model, data)
    assert {(x.shape[1], x.shape[0] > 8) for x, _ in problem.train} == {(2, True), (64, False)}
    wide = tf.data.Dataset.from_tensors((np.ones((1, 64, 1)), np.ones((1, 1)))).repeat(40)
    assert len(problem.read(wide, "test")) == 40


@pytest.mark.parametrize("count", [11, 9])
def test_a_pass_of_another_length_is_seen_behind_joined_batches(count, monkeypatch):
    monkeypatch.setattr(data_room, "_SMALL", -1)
    counts = iter([10, count])

    def rows():
        yield from zip(np.arange(20.0).reshape(10, 2).repeat(2, 0)[: next(counts)], range(20))

    signature = tf.TensorSpec([2], tf.float64), tf.TensorSpec([], tf.int64)
    dataset = tf.data.Dataset.from_generator(rows, output_signature=signature).batch(1)
    batches = data_room.read(dataset).joined(5, ((2,), ()))
    with pytest.raises(ValueError, match="other batches at each pass"):
        list(batches)


@pytest.mark.parametrize(("nbytes", "count"), [(2**25, 1), (4 * 6 * 8, 3), (1, 10)])
def test_a_users_small_batches_are_joined_as_far_as_memory_allows(nbytes, count, monkeypatch):
    """A row has two numbers and a label, and the layer puts out three, of eight bytes each."""
    monkeypatch.setattr("keras_influence.engine.layers.footprint._BATCH", nbytes)
    x, y = np.arange(20.0).reshape(10, 2) / 10, np.arange(10) % 3
    model = truth.softmax_model(2, 3, L2)
    single = tf.data.Dataset.from_tensor_slices((x, y)).batch(1)
    problem = Problem(model, single)
    assert len(problem.train) == len(problem.read(single, "test")) == count
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    expected = closed.hessian(truth.get_flat(model))
    assert truth.relative_error(problem.curvature("hessian").to_dense(), expected) < 1e-9


def test_batches_stay_where_layers_add_what_depends_on_all_of_one(rng):
    class Spread(keras.layers.Layer):
        def call(self, z):
            self.add_loss(keras.ops.sum(keras.ops.var(z, 0)))
            return z

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Spread()(keras.layers.Dense(1)(inputs)))
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(12, 2)), rng.normal(size=(12, 1))))
    with pytest.warns(ki.ObjectiveWarning, match="neither a mean nor a sum"):
        assert len(Problem(model, data.batch(4)).train) == 3


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
