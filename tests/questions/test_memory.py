"""Scores that no memory holds are refused before the work begins, with the ways out."""

import math

import numpy as np
import pytest

import keras_influence as ki
from keras_influence.questions import memory
from tests import truth

GROUPS = {
    "version 2": (
        "0::/job/step",
        {"memory.max": 1000, "memory.current": 900},
        "anon 10\ninactive_file 300\n",
    ),
    "version 1": (
        "9:name=systemd:/\n4:memory:/job/step\n0::/",
        {"memory.limit_in_bytes": 1000, "memory.usage_in_bytes": 900},
        "inactive_file 20\ntotal_inactive_file 300\n",
    ),
}


@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_a_matrix_larger_than_memory_is_refused_and_store_is_named(kind, rng):
    """A million test and a million training examples: 8 TB."""
    n = 10**6
    x, y = rng.normal(size=(n, 1)), rng.normal(size=n)
    data = x, y
    if kind == "dask":
        da = pytest.importorskip("dask.array")
        data = da.from_array(x, chunks=(n // 4, 1), name=False), y
    model = truth.ridge_model(1, truth.L2)
    with pytest.raises(MemoryError, match=r"take 8e\+03 GB, and .* `store=`.*`top_influence`"):
        ki.influence(model, (x, y), data, damping=0.1, verbose=0)


@pytest.mark.parametrize("top", [False, True], ids=["host", "container"])
@pytest.mark.parametrize(("line", "files", "stat"), GROUPS.values(), ids=GROUPS)
def test_what_is_left_in_a_batch_job_or_a_container(line, files, stat, top, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    7 kB\n")
    assert memory.bytes_left(tmp_path) == 7 * 1024
    (tmp_path / "proc/self/cgroup").write_text(line)
    kind = "memory" if "memory" in line else ""
    folder = tmp_path / "sys/fs/cgroup" / kind / ("" if top else "job/step")
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(stat)
    assert memory.bytes_left(tmp_path) == 1000 - 900 + 300
    (folder / next(iter(files))).write_text("max\n")
    assert memory.bytes_left(tmp_path) == 7 * 1024


def test_where_the_system_does_not_say_all_fits(tmp_path):
    assert memory.bytes_left(tmp_path) == math.inf
    assert memory.bytes_left() > 2**20
    memory.check_fits(10, 10, np.float32)
