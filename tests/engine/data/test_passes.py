"""What is seen, and said, of data that cannot be used as they are."""

import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.data import batches as data_room

X, Y = np.arange(24.0).reshape(8, 3), np.arange(8)
SLICES = tf.data.Dataset.from_tensor_slices((X, Y))


def changed(value, *place):
    copy = X.copy()
    copy[place] = value
    return copy


def weighted(value, position):
    weights = np.ones(8)
    weights[position] = value
    return X, Y, weights


def graphs():
    """Batches in which the rows of x are atoms and those of y molecules."""
    return tf.data.Dataset.from_tensors((np.ones((12, 3)), np.ones((4, 1))))


WRONG = {
    "not batched": (SLICES, "`train` should be batched.*single examples.*batch"),
    "not batched, y of rank 1": (
        tf.data.Dataset.from_tensor_slices((X, Y[:, None])),
        r"`train` should have as many rows in x as in y.*\(3,\), \(1,\).*Is the dataset batched",
    ),
    "merged": (graphs(), r"`train`.*as many rows.*\(12, 3\), \(4, 1\).*merged.*cannot be told"),
    "merged, no row": (
        tf.data.Dataset.from_tensors((np.ones((0, 3)), np.ones((4, 1)))),
        r"`train`.*as many rows.*\(0, 3\), \(4, 1\)",
    ),
    "four parts": (SLICES.batch(4).map(lambda x, y: (x, y, y, y)), "`train`.*elements of 4 parts"),
    "windows": (SLICES.window(4), "`train`.*made of tensors.*DatasetSpec"),
    "all empty": (SLICES.take(0).batch(4), "`train` should have at least one example"),
    "weights without y": ((X, None, np.ones(8)), "`train` has sample_weight without y"),
    "NaN in x": ((changed(np.nan, 5, 1), Y), r"`train` has NaN.* in x, first in example 5 "),
    "NaN in y": ((X, Y, changed(np.nan, 6)[:, 0]), r"in sample_weight, first in example 6 "),
    "infinite weight": (weighted(-np.inf, 7), "in sample_weight, first in example 7 "),
    "NaN in a nested x": (({"a": X, "b": changed(np.nan, 2)}, Y), "in x, first in example 2 "),
    "NaN in a dataset": (
        tf.data.Dataset.from_tensor_slices((changed(np.nan, slice(6, 8)), Y)).batch(4),
        "in x, first in example 6 ",
    ),
    "NaN in a sparse x": (
        (tf.sparse.from_dense(changed(np.nan, slice(4, 7))), Y),
        "in x, first in example 4 ",
    ),
}


@pytest.mark.parametrize("data, match", WRONG.values(), ids=WRONG)
def test_the_message_names_the_argument_and_the_place(data, match):
    with pytest.raises((ValueError, TypeError), match=match):
        data_room.read(data)


def passes(change, count=3):
    """A dataset of images whose pass number k is `change(images, k)`."""
    images = np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype("float32")
    numbers = iter(range(100))

    def batches():
        copy = images.copy()
        change(copy, next(numbers))
        yield from zip(np.split(copy, count), np.split(np.arange(6), count))

    signature = (tf.TensorSpec([None, 32, 32, 3]), tf.TensorSpec([None], tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def one_number(x, k):
    x[3, 17, 5, 1] += k


def a_patch(x, k):
    x[2, 10:12, 3 + k : 6 + k] = 0


def other_rows(x, k):
    if k:
        x[[0, 1]] = x[[1, 0]]


def flipped(x, k):
    if k:
        x[:] = x[:, :, ::-1].copy()


@pytest.fixture(params=["held", "read anew"])
def kept(request, monkeypatch):
    """Small datasets are held in memory; large ones are read anew for each pass."""
    if request.param == "read anew":
        monkeypatch.setattr(data_room, "_SMALL", 0)
    return request.param


@pytest.mark.parametrize("change", [one_number, a_patch, other_rows, flipped])
def test_any_change_between_passes_is_seen(change, kept):
    with pytest.raises(ValueError, match="`train` gives other batches.*in_order"):
        list(data_room.read(passes(change)))


def test_passes_that_are_the_same_are_taken(kept):
    seen = []
    batches = data_room.read(passes(lambda x, k: seen.append(k)))
    assert all(len(list(batches)) == 3 for _ in range(3))
    assert len(seen) == (2 if kept == "held" else 4)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_pass_of_another_length_is_seen(count, kept):
    numbers = iter(range(100))

    def batches():
        number = next(numbers)
        for _ in range(count if number else 2):
            yield X, Y

    signature = (tf.TensorSpec([None, 3], tf.float64), tf.TensorSpec([None], tf.int64))
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    with pytest.raises(ValueError, match="`train` gives other batches"):
        list(data_room.read(data))
