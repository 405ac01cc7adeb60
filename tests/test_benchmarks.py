"""The benchmark runs, and cheap guards for what it measures."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence.engine.kernels import kernel as kernels
from keras_influence.engine.problem import Problem
from tests import truth

ROOT = pathlib.Path(__file__).parent.parent


def _run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_quick_benchmark_prints_and_writes_its_table(tmp_path):
    done = _run(
        *("benchmarks/run.py", "--quick", "--models", "softmax"),
        *("--repeats", "1", "--output", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert "| softmax | 7,850 | 1,000 | hvp |" in done.stdout
    record = json.loads((tmp_path / "quick.json").read_text())
    rows = record["parts"]["hvp_and_scores"]
    assert {(r["what"], r["vectors"]) for r in rows} >= {("hvp", 1), ("hvp", 10), ("scores", 100)}
    assert all(r["seconds"] > 0 and r["passes"] > 0 for r in rows)
    assert {"processor", "tensorflow", "keras"} <= set(record["environment"])
    assert "| softmax |" in (tmp_path / "quick.md").read_text()


@pytest.mark.slow
def test_the_benchmark_of_label_issues_finds_more_than_chance():
    pytest.importorskip("sklearn")
    done = _run(
        *("benchmarks/label_issues.py", "--data", "digits", "--models", "softmax"),
        *("--seeds", "1", "--epochs", "5", "--n", "10"),
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| digits")]
    assert len(rows) == 6
    # A tenth of the labels is wrong: by chance 0.1 of them is found in the first tenth.
    assert all(float(row[4]) > 0.6 for row in rows)


def test_importing_the_package_loads_no_plotting_of_its_own():
    """Keras may load them where they are installed; the package adds none."""
    code = (
        "import sys, keras, tensorflow, scipy.optimize, scipy.sparse.linalg\n"
        "before = set(sys.modules); import keras_influence\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'matplotlib', 'pandas', 'sklearn', 'IPython', 'jinja2', 'PIL'}))"
    )
    assert _run("-c", code).stdout.strip() == "[]"


@pytest.fixture
def traces(monkeypatch):
    """Names of the kernels that are traced, as they are."""
    names = []
    original = kernels._Compiled.__init__

    def counted(self, kernels, owner, function, *args):
        names.append(function.__name__)
        original(self, kernels, owner, function, *args)

    monkeypatch.setattr(kernels._Compiled, "__init__", counted)
    return names


def test_other_numbers_of_examples_are_not_traced_again(traces, rng):
    """Nor is what conjugate gradients are preconditioned by."""
    model = truth.softmax_model.fresh(4, 3, l2=truth.L2)

    def call(n_train, n_test):
        x, y = rng.normal(size=(n_train, 4)), rng.integers(0, 3, n_train)
        ki.influence(model, (x[:n_test], y[:n_test]), (x, y), method="cg", batch_size=8, verbose=0)

    call(20, 2)
    call(20, 1)
    kinds = ["_raw", "example_gradients", "products_and_scores", "value_and_gradient"]
    assert sorted(set(traces)) == kinds
    traces.clear()
    call(37, 5)
    call(16, 3)
    assert traces == []


def test_a_call_looks_at_a_few_examples_outside_of_kernels(rng):
    """Certificates cost a few small batches, whatever n is."""
    model = truth.softmax_model.fresh(4, 3, l2=truth.L2)
    x, y = rng.normal(size=(500, 4)), rng.integers(0, 3, 500)
    ki.hvp(model, np.ones(15), (x, y))
    rows = []
    original = keras.layers.Dense.call

    @functools.wraps(original)  # A layer of the user's own would be seen on all batches.
    def seen(self, z, *args, **options):
        rows.append(z.shape[0])
        return original(self, z, *args, **options)

    try:
        keras.layers.Dense.call = seen
        ki.hvp(model, np.ones(15), (x, y))
    finally:
        keras.layers.Dense.call = original
    assert len(rows) <= 16
    assert max(rows) <= 16


def test_scores_see_one_batch_at_a_time(monkeypatch, rng):
    """What a kernel is given and gives has the size of a batch, whatever n is."""
    model = truth.softmax_model.fresh(4, 3, l2=truth.L2)
    x, y = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    problem = Problem(model, (x, y), batch_size=8)
    shapes = []
    original = kernels._Compiled.__call__

    def seen(self, flat, weight, values):
        result = original(self, flat, weight, values)
        shapes.append((flat[0].shape[0], tuple(result.shape)))
        return result

    monkeypatch.setattr(kernels._Compiled, "__call__", seen)
    assert problem.scores(rng.normal(size=(5, 15))).shape == (5, 50)
    # One vector more, and a gradient for each batch, certify them; from one of the first it is drawn.
    assert [s for s in shapes if s[1] != (16,)] == [(8, (8, 6))] * 6 + [(2, (2, 6))]
    assert len(shapes) == 15
