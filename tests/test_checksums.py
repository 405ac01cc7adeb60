"""Fingerprints that see every change and nothing else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import checksums
from tests import truth

# ---- data

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
    one = checksums.fingerprint_of_batches(batched(DATA[kind](), 5))
    for size in (1, 2, 3):
        assert checksums.fingerprint_of_batches(batched(DATA[kind](), size)) == one
    assert checksums.fingerprint_of_batches(batched(CHANGED[kind], 2)) != one


@pytest.mark.parametrize("kind", DATA)
def test_quick_fingerprints_repeat_and_see_a_change(kind):
    # Made twice: equal strings that lie elsewhere in memory are equal.
    (first,), (again,), (other,) = (
        [checksums.quick_fingerprint(batch) for batch in batched(tensor, 5)]
        for tensor in (DATA[kind](), DATA[kind](), CHANGED[kind])
    )
    assert first == again != other


def test_an_empty_batch_has_a_fingerprint():
    empty = (np.zeros((0, 3)), np.zeros(0, object))
    assert checksums.quick_fingerprint(empty) == checksums.quick_fingerprint(empty)
    assert checksums.fingerprint_of_batches([empty])


def test_dtypes_and_shapes_are_part_of_the_data():
    zeros = [np.zeros((4, 2)), np.zeros((2, 4)), np.zeros((4, 2), np.int64)]
    assert len({checksums.fingerprint_of_batches([(z,)]) for z in zeros}) == 3
    assert len({checksums.fingerprint_of_weights([z]) for z in zeros}) == 3


def test_weights_are_known_by_value(rng):
    model = truth.ridge_model(3)
    before = checksums.fingerprint_of_weights(model.weights)
    assert before == checksums.fingerprint_of_weights([v.numpy() for v in model.weights])
    theta = truth.get_flat(model)
    theta[1] = np.nextafter(theta[1], 9)
    truth.set_flat(model, theta)
    assert checksums.fingerprint_of_weights(model.weights) != before


# ---- models


def test_a_model_is_known_by_architecture_and_compile_state():
    first, again = truth.softmax_model(3, 2), truth.softmax_model(3, 2)
    assert [v.path for v in first.weights] != [v.path for v in again.weights]
    known = checksums.fingerprint_of_model(first)
    assert checksums.fingerprint_of_model(again) == known
    again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ignore_class=0))
    assert checksums.fingerprint_of_model(again) != known
    assert checksums.fingerprint_of_model(truth.softmax_model(3, 2, truth.L2)) != known
