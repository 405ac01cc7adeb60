"""One pass of a random dataset, kept: influence is that of the rows that were kept, as arrays."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.truth import L2


@pytest.fixture
def problem(rng):
    return truth.softmax_model(4, 3, L2), rng.normal(size=(23, 4)), rng.integers(0, 3, 23)


@pytest.fixture(params=["in memory", "in a file"])
def path(request, tmp_path):
    return tmp_path / "kept" if request.param == "in a file" else None


def augmented(x, y):
    """Shuffled and made noisy anew at each pass."""
    rows = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    return rows.map(lambda a, b: (a + tf.random.normal(a.shape, dtype=a.dtype), b))


class Shuffled(keras.utils.PyDataset):
    """Shuffles at the end of an epoch, and draws noise from NumPy's own generator."""

    def __init__(self, x, y, noise=1.0, **kwargs):
        super().__init__(**kwargs)
        self.x, self.y, self.noise, self.order = x, y, noise, np.arange(len(x))

    def __len__(self):
        return -(-len(self.x) // 5)

    def __getitem__(self, i):
        rows = self.order[5 * i : 5 * i + 5]
        return self.x[rows] + self.noise * np.random.normal(size=(len(rows), 4)), self.y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


FORMS = {
    "batched": lambda x, y: augmented(x, y).batch(5),
    "batched afterwards": lambda x, y: augmented(x, y),
    "order that threads leave to chance": lambda x, y: (
        augmented(x, y)
        .batch(5)
        .map(lambda *b: b, num_parallel_calls=4, deterministic=False)
        .prefetch(2)
    ),
    "PyDataset": Shuffled,
    "PyDataset with workers": lambda x, y: Shuffled(x, y, workers=2),
}


def collected(dataset):
    return tuple(np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator()))


@pytest.mark.parametrize("form", FORMS)
def test_influence_is_that_of_the_rows_that_were_kept(form, path, problem):
    model, x, y = problem
    source = FORMS[form](x, y)
    kept = ki.in_order(source, path)
    kept = kept.batch(6) if form == "batched afterwards" else kept
    rows, labels = collected(kept)
    assert rows.shape == (23, 4) and sorted(labels) == sorted(y)
    closed = truth.SoftmaxRegression(rows, labels, 3, L2)
    theta = truth.get_flat(model)
    g = closed.example_gradients(theta)
    expected = g[:5] @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 23
    test = rows[:5], labels[:5]
    for method in ("direct", ki.CG(tol=1e-10)):
        found = ki.influence(model, test, kept, damping=0.1, method=method, verbose=0).values
        assert truth.relative_error(found, expected) < 1e-8


def test_what_is_in_the_file_is_there_in_another_process_too(problem, tmp_path):
    _, x, y = problem
    kept = collected(ki.in_order(augmented(x, y).batch(5), tmp_path / "kept"))
    again = collected(tf.data.Dataset.load(os.fspath(tmp_path / "kept")))
    assert all((a == b).all() for a, b in zip(kept, again))
    assert os.listdir(tmp_path) == ["kept"]


def test_strings_sparse_and_ragged_elements_are_kept(path, rng):
    x = {
        "text": [["a"], ["bc"], ["d"]],
        "sparse": tf.sparse.from_dense(np.eye(3)),
        "ragged": tf.ragged.constant([[1], [2, 3], []]),
    }
    kept = ki.in_order(tf.data.Dataset.from_tensor_slices(x).shuffle(3).batch(2), path)
    first, second = (
        [(str(b["text"]), str(b["ragged"]), str(tf.sparse.to_dense(b["sparse"]))) for b in kept]
        for _ in range(2)
    )
    assert first == second and len(first) == 2


def test_nothing_stays_of_a_pass_that_failed(tmp_path):
    def elements():
        yield 1.0
        raise RuntimeError("the disk is gone")

    broken = tf.data.Dataset.from_generator(elements, output_signature=tf.TensorSpec([]))
    with pytest.raises(tf.errors.OpError, match="the disk is gone"):
        ki.in_order(broken, tmp_path / "kept")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "data, error, match",
    [
        ((np.zeros((3, 1)), np.zeros(3)), TypeError, "`data` should be a tf.data.Dataset"),
        (tf.data.Dataset.range(3).repeat(), ValueError, r"`data` should be finite.*\.take"),
        (tf.data.Dataset.range(0), ValueError, "`data` should have at least one element"),
    ],
    ids=["arrays", "endless", "empty"],
)
def test_what_cannot_be_kept(data, error, match, path, tmp_path):
    with pytest.raises(error, match=match):
        ki.in_order(data, path)
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    data = tf.data.Dataset.range(3)
    with pytest.raises(FileExistsError, match="`path`.*tf.data.Dataset.load"):
        ki.in_order(data, tmp_path)
    with pytest.raises(FileNotFoundError, match="`path` should be in a folder that exists"):
        ki.in_order(data, tmp_path / "missing" / "kept")


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("workers", [1, 2])
def test_numpys_random_state_comes_back(workers, noise, problem):
    model, x, y = problem
    before = np.random.get_state()[1].copy()
    data = Shuffled(x, y, noise, workers=workers)
    with pytest.raises(ValueError, match="`train` gives other batches.*in_order.*on_epoch_end"):
        ki.influence(model, (x[:2], y[:2]), data, damping=0.1, verbose=0)
    ki.in_order(data)
    assert (np.random.get_state()[1] == before).all()


class Noisy(Shuffled):
    def on_epoch_end(self):
        pass


def test_noise_of_a_pydataset_is_seen_though_the_random_state_comes_back(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="`train` gives other batches at each pass"):
        ki.influence(model, (x[:2], y[:2]), Noisy(x, y), damping=0.1, verbose=0)
