import gc
import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Threads beyond the processors that a worker has to itself would wait for those of other workers.
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for _kind in ("OMP_NUM", "OPENBLAS_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ.setdefault(f"{_kind}_THREADS", str(max(_share, 1)))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import pytest

from keras_influence.engine.layers import scoring
from keras_influence.questions import kept
from tests import pool


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """What `-n auto` starts: each worker holds a TensorFlow of its own, which is large."""
    return min(os.cpu_count() or 1, 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours go to one worker, which has compiled their models; who is done takes from the others' rest."""
    from xdist.scheduler import WorkStealingScheduling

    if config.getoption("dist") == "load":  # What `-n` is without `--dist`.
        return WorkStealingScheduling(config, log)
    return None


def pytest_addoption(parser):
    parser.addoption(
        "--first-cases",
        action="store_true",
        help="of a test with many cases run the first alone, but for those marked `each_case`",
    )


@pytest.hookimpl(tryfirst=True)  # Before pytest looks for what is marked `slow`.
def pytest_collection_modifyitems(config, items):
    for item in items:
        named = item.get_closest_marker("slow_cases")
        if named is not None and item.callspec.id in named.args:
            item.add_marker("slow")
    if not config.getoption("first_cases"):
        return
    seen, left_out, chosen = set(), [], []
    for item in items:
        if item.get_closest_marker("slow") is not None:
            chosen.append(item)  # Whether it is run, `-m` says.
            continue
        test = item.nodeid.partition("[")[0]
        again = test in seen and item.get_closest_marker("each_case") is None
        (left_out if again else chosen).append(item)
        seen.add(test)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def pytest_collection_finish(session):
    """What was imported stays: the garbage collector need not look through it again."""
    gc.freeze()


def set_precision(name):
    """Keras keeps its dtype policy when only `floatx` is set: set both."""
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


# As it is for fixtures of a whole module, which are made before those of a test.
set_precision("float64")


@pytest.fixture(autouse=True)
def float64():
    """Truth is checked in float64; tests of other precisions set their own."""
    set_precision("float64")
    keras.utils.set_random_seed(0)
    yield
    set_precision("float64")
    pool.take_back()
    kept.forget()


@pytest.fixture
def scores_by_their_kernel(monkeypatch):
    """Also of few weights, and where a kernel of gradients might stand in."""
    monkeypatch.setattr(scoring, "_FORMED", 0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def ridge(rng):
    """A ridge model at random weights, with training and test data."""
    from tests import retraining, truth

    return truth.ridge_model(4, truth.L2), *retraining.ridge_problem(rng)
