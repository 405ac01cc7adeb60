"""Strings, sparse and ragged tensors: the numbers of the plain arrays, or a refusal by name."""

import keras
import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.data import batches as data_room
from tests import truth
from tests.pool import pooled
from tests.truth import L2

WORDS = np.array(["red", "green", "blue", "apple", "pear", "sky", "sea"])


def closed_form(model, x, y):
    """Scores, self-influence and the solved gradients of a softmax layer on features x."""
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta)
    solved = np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(g.shape[1]), g.T)
    return g @ solved / len(x), np.sum(g * solved.T, axis=1)


def softmax_of(inputs, features):
    dense = keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(L2))
    model = keras.Model(inputs, dense(features))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pooled
def of_texts():
    inputs = keras.Input((1,), dtype="string")
    vectors = keras.layers.TextVectorization(vocabulary=WORDS, output_mode="multi_hot")
    return softmax_of(inputs, keras.ops.cast(vectors(inputs), "float64"))


@pooled
def of_sparse():
    inputs = keras.Input((6,), sparse=True)
    return softmax_of(inputs, inputs)


@pytest.fixture
def bags(rng):
    """A model of texts, the texts, labels, and the bags of words that it makes of them."""
    has = rng.uniform(size=(23, len(WORDS))) < 0.4
    has[:, 0] |= ~has.any(axis=1)
    texts = np.array([" ".join(WORDS[row]) for row in has])
    # The first place is for words that are not in the vocabulary.
    features = np.hstack([np.zeros((23, 1)), has])
    return of_texts(), texts, rng.integers(0, 3, 23), features


STRINGS = {
    "NumPy's": lambda t: t[:, None],
    "NumPy's objects": lambda t: t.astype(object)[:, None],
    "NumPy's bytes": lambda t: t.astype("S")[:, None],
    "a tensor": lambda t: tf.constant(t)[:, None],
    "a frame": lambda t: pandas.DataFrame({"text": t}),
}


def check(model, train, expected, method="direct"):
    scores, own = expected
    options = {"damping": 0.1, "method": method, "verbose": 0}
    found = ki.influence(model, train, train, **options).values
    assert truth.relative_error(found, scores) < 1e-8
    asked = [22, 0, 7, 7]
    found = ki.self_influence(model, train, indices=asked, **options)
    assert truth.relative_error(found, own[asked]) < 1e-8
    found = ki.group_influence(model, train, train, [[22, 0], [7]], **options)
    groups = np.stack([scores[:, [22, 0]].sum(1), scores[:, 7]], axis=1)
    assert truth.relative_error(found, groups) < 1e-8


@pytest.mark.parametrize("form", STRINGS)
def test_strings_in_arrays(form, bags):
    model, texts, y, features = bags
    check(model, (STRINGS[form](texts), y), closed_form(model, features, y))


@pytest.mark.slow_cases("5-cg")
@pytest.mark.parametrize("method", ["direct", "cg"])
@pytest.mark.parametrize("size", [1, 5, 23])
def test_strings_in_a_dataset(size, method, bags):
    model, texts, y, features = bags
    train = tf.data.Dataset.from_tensor_slices((texts[:, None], y)).batch(size)
    method = ki.CG(tol=1e-10) if method == "cg" else method
    check(model, train, closed_form(model, features, y), method)


def test_a_string_that_changes_between_passes_is_seen(bags):
    _, texts, y, _ = bags
    passes = iter(range(100))

    def batches():
        changed = texts.copy()
        changed[7] = f"pass {next(passes)}"
        yield changed[:, None], y

    signature = (tf.TensorSpec([None, 1], tf.string), tf.TensorSpec([None], tf.int64))
    train = tf.data.Dataset.from_generator(batches, output_signature=signature)
    with pytest.raises(ValueError, match="`train` gives other batches at each pass"):
        list(data_room.read(train))


@pytest.fixture
def sparse(rng):
    x = rng.normal(size=(23, 6)) * (rng.uniform(size=(23, 6)) < 0.4)
    return of_sparse(), x, rng.integers(0, 3, 23)


def _shuffled(matrix):
    order = np.random.default_rng(0).permutation(matrix.nnz)
    places = matrix.row[order], matrix.col[order]
    return scipy.sparse.coo_matrix((matrix.data[order], places), matrix.shape)


def _in_halves(matrix):
    """Two entries at each place, which count together."""
    places = np.tile(matrix.row, 2), np.tile(matrix.col, 2)
    return scipy.sparse.coo_matrix((np.tile(matrix.data / 2, 2), places), matrix.shape)


def _csr_by_hand(x):
    """Rows whose entries stand backwards, each as two halves."""
    rows = [np.repeat(np.flatnonzero(row)[::-1], 2) for row in x]
    values = [x[i, columns] / 2 for i, columns in enumerate(rows)]
    ends = np.cumsum([0, *map(len, rows)])
    return scipy.sparse.csr_matrix((np.concatenate(values), np.concatenate(rows), ends), x.shape)


def _as_tensor(matrix):
    return tf.SparseTensor(np.column_stack([matrix.row, matrix.col]), matrix.data, matrix.shape)


SPARSE = {
    "csr matrix": lambda x, y: (scipy.sparse.csr_matrix(x), y),
    "coo array": lambda x, y: (scipy.sparse.coo_array(x), y),
    "csr in no order, in halves": lambda x, y: (_csr_by_hand(x), y),
    "csc matrix": lambda x, y: (scipy.sparse.csc_matrix(x), y),
    "dok matrix": lambda x, y: (scipy.sparse.dok_matrix(x), y),
    "coo in no order": lambda x, y: (_shuffled(scipy.sparse.coo_matrix(x)), y),
    "coo in halves": lambda x, y: (_in_halves(scipy.sparse.coo_matrix(x)), y),
    "tensor": lambda x, y: (tf.sparse.from_dense(x), y),
    "tensor in no order": lambda x, y: (_as_tensor(_shuffled(scipy.sparse.coo_matrix(x))), y),
    "dataset": lambda x, y: tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(
        5
    ),
}


@pytest.mark.slow_cases("csr matrix")
@pytest.mark.skipif(keras.__version__ < "3.11", reason="Keras 3.10 cuts sparse arrays wrongly")
@pytest.mark.parametrize("form", SPARSE)
def test_sparse_inputs(form, sparse):
    model, x, y = sparse
    train = SPARSE[form](x, y)
    # Batches smaller than the data, for arrays too.
    expected = closed_form(model, x, y)
    if isinstance(train, tuple):
        found = ki.influence(model, train, train, damping=0.1, batch_size=4, verbose=0).values
        assert truth.relative_error(found, expected[0]) < 1e-8
    check(model, train, expected)


def test_sparse_batches_are_kept_sparse_until_they_are_asked_for():
    """A matrix that would need 80 GB as a dense one."""
    rows, columns = 100_000, 100_000
    places = np.arange(rows)
    x = scipy.sparse.csr_matrix((np.ones(rows), (places, places)), (rows, columns))
    batches = data_room.read((x, places), batch_size=16)
    first = next(iter(batches))[0].numpy()
    assert (first[:, :16] == np.eye(16)).all() and first.sum() == 16
    picked = next(iter(batches.subset(np.array([99_999, 3]))))[0].numpy()
    assert picked[0, 99_999] == picked[1, 3] == 1 and picked.sum() == 2


RAGGED = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]])


class Ragged(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return RAGGED, np.zeros(3)


@pytest.mark.parametrize(
    "data, part",
    [
        ((RAGGED, np.zeros(3)), "x"),
        (({"a": np.zeros(3), "b": RAGGED}, np.zeros(3)), "x"),
        ((np.zeros((3, 1)), RAGGED), "y"),
        (tf.data.Dataset.from_tensor_slices((RAGGED, np.zeros(3))).batch(2), "x"),
        (tf.data.Dataset.from_tensor_slices((RAGGED, np.zeros(3))), "x"),
        (Ragged(), "x"),
    ],
    ids=["tensor", "nested", "y", "dataset", "not batched", "PyDataset"],
)
def test_ragged_tensors_are_refused_with_the_way_out(data, part):
    with pytest.raises(TypeError, match=rf"`test` has ragged tensors in {part}.*to_tensor\(\)"):
        data_room.read(data, name="test")


class Parts(keras.utils.PyDataset):
    """Batches of two examples, with those parts that are given for each."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


ONE = np.ones((2, 3)), np.ones((2, 1))
WEIGHTED = *ONE, np.ones(2)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ((ONE, WEIGHTED), "batch 0 has x, y and batch 1 has x, y, sample_weight"),
        ((WEIGHTED, ONE), "batch 0 has x, y, sample_weight and batch 1 has x, y"),
        ((ONE, ONE, WEIGHTED), "batch 0 has x, y and batch 2 has x, y, sample_weight"),
        ((WEIGHTED, (*ONE, None)), "batch 1 has None in sample_weight"),
        (((*ONE, None),), "batch 0 has None in sample_weight"),
        (((ONE[0], {"a": ONE[1], "b": None}),), "batch 0 has None in y"),
    ],
)
def test_batches_of_a_pydataset_that_have_other_parts_are_named(batches, says):
    for read, name in ((data_room.read, "train"), (ki.in_order, "data")):
        with pytest.raises(ValueError, match=f"`{name}` should have the same parts.*{says}.*ones"):
            read(Parts(*batches))


def test_a_generator_of_batches_that_have_other_parts_is_named():
    signature = tuple(tf.TensorSpec(a.shape, a.dtype) for a in ONE)
    batches = (ONE, WEIGHTED)
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    for read, name in ((data_room.read, "train"), (ki.in_order, "data")):
        with pytest.raises(ValueError, match=f"`{name}` should have the same parts.*its generator"):
            read(data)


def test_a_pydataset_that_fails_itself_keeps_its_error():
    class Broken(Parts):
        def __getitem__(self, i):
            raise ValueError("no such file")

    with pytest.raises(ValueError, match="^no such file"):
        data_room.read(Broken(ONE))
