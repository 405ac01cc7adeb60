"""Import this first: TensorFlow is imported without the messages of its start.

They come from its C++ side, some before any setting is read, so they are kept off the terminal while
it is imported. Python's own errors and warnings are as ever.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_terminal, _nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import tensorflow  # noqa: F401
finally:
    os.dup2(_terminal, 2)
    os.close(_terminal)
    os.close(_nowhere)
