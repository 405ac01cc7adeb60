"""Files whole or not at all; fingerprints that see every change and nothing else."""

import functools
import os
import stat

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import storage
from tests import truth

# ---- files


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    with storage.writing(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), storage.writing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with storage.writing(tmp_path / "file") as file:
            file.write(b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    with storage.writing(tmp_path / "link") as file:
        file.write(b"one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_bytes() == b"one"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="`path` should be in a folder that exists.*none"),
        storage.writing(tmp_path / "none" / "file"),
    ):
        pass


@pytest.mark.parametrize("name", ["scores", "scores.npz", "scores.v2"])
def test_arrays_come_back_under_the_name_they_were_given(tmp_path, name):
    arrays = {"a": np.arange(3), "text": np.array("words"), "b": np.zeros((0, 2), np.float32)}
    storage.write_arrays(tmp_path / name, arrays)
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]
    for known in (tmp_path / name, next(tmp_path.iterdir()), str(tmp_path / name)):
        found = storage.read_arrays(known, "save", needed=("a",))
        assert set(found) == set(arrays)
        assert all((found[k] == v).all() and found[k].dtype == v.dtype for k, v in arrays.items())


def test_objects_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="objects cannot be written: bad"):
        storage.write_arrays(tmp_path / "file", {"bad": np.array([None])})
    assert not list(tmp_path.iterdir())


def test_files_of_others_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    storage.write_arrays(path, {"a": np.random.default_rng(0).normal(size=1000)})
    with pytest.raises(ValueError, match="written by Scores.save; .*file.npz lacks b, c"):
        storage.read_arrays(path, "Scores.save", needed=("a", "c", "b"))
    whole = path.read_bytes()
    broken = whole[:500] + bytes([whole[500] ^ 255]) + whole[501:]
    for damaged in (whole[:-100], whole[:50], b"", b"text", broken):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="written by Scores.save; .*is damaged"):
            storage.read_arrays(path, "Scores.save")
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="it holds a single array"):
        storage.read_arrays(path, "Scores.save")
    with pytest.raises(FileNotFoundError):
        storage.read_arrays(tmp_path / "none", "Scores.save")
    with pytest.raises(
        TypeError, match="`path` should be the name of a file written by Scores.save"
    ):
        storage.read_arrays((np.zeros(2), np.zeros(2)), "Scores.save")


# ---- fingerprints of data

TEXTS = np.array([["a" * 40], ["bb"], ["c"], ["a"], ["bc"]])
DATA = {
    "numbers": lambda: tf.constant(np.arange(10.0).reshape(5, 2)),
    "texts": lambda: tf.constant(TEXTS.tolist()),
    "ragged": lambda: tf.ragged.constant([[1, 2], [], [3], [4, 5, 6], [7]]),
    "sparse": lambda: tf.sparse.from_dense([[0, 1], [2, 0], [0, 0], [3, 4], [0, 5]]),
}
CHANGED = {
    "numbers": tf.constant(np.arange(10.0).reshape(5, 2) + np.eye(5, 2)),
    "texts": tf.constant([["a" * 40], ["bb"], ["c"], ["ab"], ["c"]]),
    "ragged": tf.ragged.constant([[1], [2], [3], [4, 5, 6], [7]]),
    "sparse": tf.sparse.from_dense([[1, 0], [2, 0], [0, 0], [3, 4], [0, 5]]),
}


def batched(tensor, size):
    return tf.data.Dataset.from_tensor_slices((tensor,)).batch(size)


@pytest.mark.parametrize("kind", DATA)
def test_data_are_known_whatever_the_batches_are(kind):
    one = storage.fingerprint_of_batches(batched(DATA[kind](), 5))
    for size in (1, 2, 3):
        assert storage.fingerprint_of_batches(batched(DATA[kind](), size)) == one
    assert storage.fingerprint_of_batches(batched(CHANGED[kind], 2)) != one


@pytest.mark.parametrize("kind", DATA)
def test_quick_fingerprints_repeat_and_see_a_change(kind):
    # Made twice: equal strings that lie elsewhere in memory are equal.
    (first,), (again,), (other,) = (
        [storage.quick_fingerprint(batch) for batch in batched(tensor, 5)]
        for tensor in (DATA[kind](), DATA[kind](), CHANGED[kind])
    )
    assert first == again != other


def test_an_empty_batch_has_a_fingerprint():
    empty = (np.zeros((0, 3)), np.zeros(0, object))
    assert storage.quick_fingerprint(empty) == storage.quick_fingerprint(empty)
    assert storage.fingerprint_of_batches([empty])


def test_dtypes_and_shapes_are_part_of_the_data():
    zeros = [np.zeros((4, 2)), np.zeros((2, 4)), np.zeros((4, 2), np.int64)]
    assert len({storage.fingerprint_of_batches([(z,)]) for z in zeros}) == 3
    assert len({storage.fingerprint_of_weights([z]) for z in zeros}) == 3


def test_weights_are_known_by_value(rng):
    model = truth.ridge_model(3)
    before = storage.fingerprint_of_weights(model.weights)
    assert before == storage.fingerprint_of_weights([v.numpy() for v in model.weights])
    theta = truth.get_flat(model)
    theta[1] = np.nextafter(theta[1], 9)
    truth.set_flat(model, theta)
    assert storage.fingerprint_of_weights(model.weights) != before


# ---- fingerprints of models


def test_a_model_is_known_by_architecture_and_compile_state():
    first, again = truth.softmax_model(3, 2), truth.softmax_model(3, 2)
    assert [v.path for v in first.weights] != [v.path for v in again.weights]
    known = storage.fingerprint_of_model(first)
    assert storage.fingerprint_of_model(again) == known
    again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ignore_class=0))
    assert storage.fingerprint_of_model(again) != known
    assert storage.fingerprint_of_model(truth.softmax_model(3, 2, truth.L2)) != known


# ---- fingerprints of functions


def power(exponent, base=1.0):
    return lambda x: (base * x) ** exponent


def scaled(x, factor=2.0):
    return factor * x


class Called:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x


def test_functions_are_known_by_what_they_do():
    print_of = storage.fingerprint_of_function
    assert print_of(None) is None
    known = [
        scaled,
        power(2),
        power(3),
        power(2, 2.0),
        functools.partial(scaled, factor=3.0),
        functools.partial(scaled, factor=4.0),
        Called(),
        np.sum,
        len,
    ]
    assert len({print_of(f) for f in known}) == len(known)
    assert print_of(power(2)) == print_of(power(2))
    called = Called()
    before = print_of(called)
    called(1)
    assert print_of(called) == before


def test_a_function_inside_another_counts():
    def outer(inner):
        return lambda x: inner(x)

    print_of = storage.fingerprint_of_function
    assert print_of(outer(power(2))) == print_of(outer(power(2)))
    assert print_of(outer(power(2))) != print_of(outer(power(3)))
