"""What the oldest supported versions do otherwise."""

import keras
import numpy as np
import pytest

from keras_influence import copies
from tests.conftest import set_precision


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_a_copy_in_float64_has_the_penalty_of_its_original(regularizer, rng):
    set_precision("float32")
    dense = keras.layers.Dense(2, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((3,)), dense])
    model.compile(loss="mse")
    kernel = rng.normal(size=(3, 2)).astype("float32")
    dense.kernel.assign(kernel)
    with copies.double_precision():
        (penalty,) = copies.double(model).losses
    truth = 0.01 * (np.abs(np.float64(kernel)) ** int(regularizer[1])).sum()
    assert str(penalty.dtype) == "<dtype: 'float64'>"
    # The original keeps its factor in float32.
    assert float(penalty) == pytest.approx(truth, rel=1e-7)
