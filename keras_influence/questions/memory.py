"""Whether a matrix of scores fits into memory."""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
from typing import Any

import numpy as np

# What a container or a batch job may have: file names of cgroups' second and first version.
_CGROUPS = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def check_fits(n_test: int, n_train: int, dtype: Any) -> None:
    """Raise unless (n_test, n_train) scores fit into the memory that is left.

    Raises:
        MemoryError: they do not. The system itself says so late, if at all: it hands out memory
            that is not there, and ends the process that comes to write to it.
    """
    needed, left = n_test * n_train * np.dtype(dtype).itemsize, bytes_left()
    if needed > left:
        raise MemoryError(
            f"The scores of {n_test} test and {n_train} training examples take {needed / 1e9:.3g} GB, "
            f"and {left / 1e9:.3g} GB of memory are left. Give `store=` a folder: they are written "
            "there block by block, and read from there; or ask `top_influence` for the strongest."
        )


def bytes_left(root: pathlib.Path = pathlib.Path("/")) -> float:
    """Bytes that this process can still have; infinite where the system (not Linux) does not say.

    Args:
        root: where the system's files are.
    """
    left = math.inf
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable: *(\d+) kB", (root / "proc/meminfo").read_text())
        left = int(found[1]) * 1024 if found else left
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kind, group = line.split(":", 2)
            if kind in _CGROUPS:
                left = min(left, _left_in(root / "sys/fs/cgroup" / kind, group, *_CGROUPS[kind]))
    return left


def _left_in(top: pathlib.Path, group: str, limit: str, usage: str) -> float:
    """What a group of processes may still have; in a container its own may be the top one."""
    for folder in (top / group.lstrip("/"), top):
        with contextlib.suppress(OSError, ValueError):
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            # Of what is counted as used, files that can be read again are given back at need.
            stat = (folder / "memory.stat").read_text()
            cached = re.findall(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
            return most - used + max(map(int, cached), default=0)
    return math.inf
