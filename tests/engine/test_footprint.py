"""What an example takes, and how many examples and vectors go together because of it."""

import keras
import numpy as np
import pytest

from keras_influence.engine.layers.footprint import (
    examples_together,
    footprint_of,
    vectors_together,
)
from keras_influence.engine.problem import Problem

layers = keras.layers


def _few(*shape):
    return (np.zeros((4, *shape), "float32"), np.zeros((4, 1), "float32"))


def test_of_a_dense_network():
    """Outputs of 7 and 2 numbers, and the input layer's 5; each weight once."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(7), layers.Dense(2)])
    found = footprint_of(model, _few(5))
    assert found.numbers in (9, 14)
    assert found.work == pytest.approx(5 * 7 + 7 + 7 * 2 + 2, abs=5)


def test_what_no_weight_comes_before_does_not_move():
    """The pixels are put out once more by the layers before the first dense one."""
    first = [keras.Input((4, 5)), layers.Rescaling(2.0), layers.Flatten()]
    model = keras.Sequential([*first, layers.Dense(7), layers.Dense(2)])
    found = footprint_of(model, _few(4, 5))
    assert found.numbers >= 20 + 20 + 9 and found.moving == 9


def test_of_a_convolution():
    """Patches of 3 x 3 x 2 at 4 x 4 positions; each weight at each of them."""
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.Flatten()])
    found = footprint_of(model, _few(6, 6, 2))
    assert 16 * 18 <= found.numbers <= 16 * 18 + 2 * 72
    assert found.work == pytest.approx(16 * (18 * 3 + 3), rel=0.15)


def test_of_a_recurrent_layer():
    """Each weight once a step; Keras calls the cell once more, to see what it puts out."""
    model = keras.Sequential([keras.Input((9, 5)), layers.LSTM(7)])
    weights = (5 + 7 + 1) * 4 * 7
    assert 9 * weights <= footprint_of(model, _few(9, 5)).work <= 10 * weights + 150


def test_an_embedding_looks_up_and_does_not_multiply():
    model = keras.Sequential([keras.Input((4,)), layers.Embedding(10_000, 3), layers.Flatten()])
    assert footprint_of(model, _few(4)).work < 100


@pytest.mark.parametrize(("numbers", "expected"), [(1, 2**14), (1000, 2**25 // 4000), (10**7, 16)])
def test_examples_go_together_as_memory_allows(numbers, expected):
    assert examples_together(numbers, 4) == expected


def test_vectors_go_together_as_memory_and_cache_allow():
    assert vectors_together(1000, 4, 1000, 10**6) == 8
    assert vectors_together(1000, 4, 1000, 4 * 10**6) == 2
    assert vectors_together(1000, 4, 1000, 2 * 10**7) == 1
    assert vectors_together(1000, 4, 1000, 8000) == 128
    assert vectors_together(10**6, 4, 64, 1000) == 2
    assert vectors_together(10**8, 4, 64, 1000) == 1


def test_batches_of_arrays_are_cut_by_it_and_a_users_are_kept():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((700, 5), "float32"), np.ones((700, 1), "float32")
    assert len(Problem(model, (x, y)).train) == 1
    assert len(Problem(model, (x, y), batch_size=100).train) == 7
