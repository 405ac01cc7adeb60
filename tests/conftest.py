import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """What `-n auto` starts: each worker holds a TensorFlow of its own, which is large."""
    return min(os.cpu_count() or 1, 4)


def set_precision(name):
    """Keras keeps its dtype policy when only `floatx` is set: set both."""
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


@pytest.fixture(autouse=True)
def float64():
    """Truth is checked in float64; tests of other precisions set their own."""
    set_precision("float64")
    keras.utils.set_random_seed(0)
    yield
    set_precision("float64")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def ridge(rng):
    """A ridge model at random weights, with training and test data."""
    from tests import retraining, truth

    return truth.ridge_model(4, truth.L2), *retraining.ridge_problem(rng)
