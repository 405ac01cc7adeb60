"""Faults of a cluster, with real processes on this machine: nothing is lost, and the bits are the same."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence.engine.data import compute
from tests import truth
from tests.truth import L2

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow
OPTIONS = {"dashboard_address": None, "memory_limit": 0, "threads_per_worker": 1}
QUIET = {"damping": 1e-3, "verbose": 0}


def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 6)), rng.integers(0, 3, 400)
    keras.utils.set_random_seed(0)
    return truth.softmax_model(6, 3, L2), (da.from_array(x, chunks=(25, 6)), y), x, y


@pytest.fixture(scope="module")
def cluster():
    """Three processes; each has a nanny, and stops beyond a share of 1.8 GB."""
    with distributed.LocalCluster(n_workers=3, **{**OPTIONS, "memory_limit": "1.8GB"}) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


def test_a_chunk_of_which_every_worker_dies_is_an_error(client):
    model, (x, y), _, _ = problem()

    def deadly(chunk):  # Of itself: workers are not to import this module, and TensorFlow, first.
        os.kill(os.getpid(), signal.SIGKILL)

    def bear(dask_scheduler, failures):
        dask_scheduler.allowed_failures, failures = failures, dask_scheduler.allowed_failures
        return failures

    usual = client.run_on_scheduler(bear, failures=0)
    with pytest.raises(RuntimeError, match="1 workers died of one task.*`memory_limit=`.*chunk"):
        ki.hvp(model, np.ones((21, 2)), (x.map_blocks(deadly, meta=x._meta), y))
    assert usual > 0 and client.run_on_scheduler(bear, failures=usual) == 0


def test_workers_that_have_all_stopped_for_want_of_memory_are_an_error(client, monkeypatch):
    """Dask waits for ever, where a limit leaves no room beside TensorFlow."""
    monkeypatch.setattr(compute, "_LOOK", 0.5)
    monkeypatch.setattr(compute, "_PATIENCE", 4)
    model, train, _, _ = problem()

    def pause_at(dask_worker, share):
        dask_worker.memory_manager.memory_pause_fraction = share

    client.run(pause_at, share=0.01)
    with pytest.raises(MemoryError, match="All workers .* have stopped.*0.7 GB.*rechunk"):
        ki.hvp(model, np.ones((21, 1)), train)
    client.run(pause_at, share=0.8)
    assert np.isfinite(ki.hvp(model, np.ones((21, 1)), train)).all()


def die():
    """As by the kernel, where a machine has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_one(seconds, client):
    """Have one of the workers die after some seconds; the thread that does."""

    def befall():
        time.sleep(seconds)
        thread.begun = time.monotonic()
        with contextlib.suppress(OSError):
            client.run(die, workers=list(client.scheduler_info()["workers"])[:1])

    thread = threading.Thread(target=befall)
    thread.start()
    return thread


def solve(model, train, vectors):
    # More steps than it needs, so that a fault falls into the middle.
    return ki.inverse_hvp(model, vectors, train, method=ki.CG(tol=1e-14, max_iter=40), **QUIET)


@pytest.mark.filterwarnings("ignore::keras_influence.ConvergenceWarning")
def test_a_worker_that_dies_in_a_solve_changes_nothing(client):
    """Others make its chunks again."""
    model, train, x, y = problem()
    vectors = np.random.default_rng(1).normal(size=(21, 2))
    with dask.config.set(scheduler="synchronous"):
        expected = solve(model, train, vectors)
    train = dask.persist(*train)
    solve(model, train, vectors)
    begun = time.monotonic()
    solve(model, train, vectors)
    took = time.monotonic() - begun
    there = set(client.scheduler_info()["workers"])
    thread = kill_one(took / 3, client)
    found = solve(model, train, vectors)
    assert thread.begun < time.monotonic() - took / 3  # It was in the middle.
    assert np.array_equal(found, expected)
    thread.join()
    assert there - set(client.scheduler_info()["workers"])
    closed = truth.SoftmaxRegression(x, y, 3, L2)
    matrix = closed.hessian(truth.get_flat(model)) + 1e-3 * np.eye(21)
    assert truth.relative_error(matrix @ expected, vectors) < 1e-10


def test_a_scheduler_that_is_lost_is_said_to_be():
    model, train, _, _ = problem()
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"],
        stderr=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stderr if "Scheduler at:" in line)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    address = line.split("Scheduler at:")[1].strip()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--no-dashboard",
            "--no-nanny",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        with distributed.Client(address, timeout=30) as client:
            client.wait_for_workers(1, timeout=60)
            v = np.ones((21, 1))
            ki.hvp(model, v, train)
            operator = ki.operator(model, train)
            threading.Timer(1.0, process.kill).start()
            with pytest.raises(ConnectionError, match="connection to Dask's scheduler was lost"):
                for _ in range(1000):
                    operator.matmat(v.T)
    finally:
        process.kill()
        worker.kill()
        process.wait()
        worker.wait()
