"""What another process says."""

import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]


def printed(code):
    """What a few lines of code print there, where strings have other hashes and objects lie elsewhere."""
    environment = {**os.environ, "PYTHONHASHSEED": "3", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert not found.returncode, found.stderr
    return found.stdout.strip()
