"""One pass of a random dataset, kept in the order in which it came."""

import os
import pathlib
import shutil
import time

import keras
import tensorflow as tf

from keras_influence import storage
from keras_influence.engine.data import sources


def in_order(data, path=None):
    """Take one pass of a dataset and keep it: a dataset that is the same at each pass.

    Scores are told apart by position, so a dataset that is shuffled or augmented anew at each
    pass cannot be asked about. What this returns can: its order, and what the augmentation drew,
    are those of the one pass. Each augmented image is then an example of its own.

        train = keras_influence.in_order(train)
        scores = keras_influence.influence(model, test, train)
        batches = list(train)          # the examples that the columns of `scores` stand for

    Args:
        data: a finite `tf.data.Dataset` or `keras.utils.PyDataset`.
        path: a folder to keep the pass in, made anew; for data that do not fit into memory.
            It is TensorFlow's own format: in another process, `tf.data.Dataset.load(path)` is
            the same dataset again. Writing it needs twice the room. Default: keep the pass in
            memory.

    Returns:
        A `tf.data.Dataset` of the same elements, complete before it is returned.

    Raises:
        TypeError: `data` is not a dataset.
        ValueError: it is endless or empty.
        FileExistsError: `path` exists.
        FileNotFoundError: the folder in which `path` lies does not exist.
    """
    if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        raise TypeError(
            "`data` should be a tf.data.Dataset or a keras.utils.PyDataset; arrays are in order "
            f"already. Received: {type(data).__name__}"
        )
    sources.check_finite(data, "data")
    path = None if path is None else _new_folder(path)
    if isinstance(data, tf.data.Dataset):
        with sources.alike(data, "data"):
            return _kept(data, path)
    with sources.pydataset_pass(data, "data") as elements:
        return _kept(elements, path)


def _kept(data, path):
    if path is not None:
        return _saved(data, path)
    kept = data.cache()
    # To its end: only then is a cache used again.
    _check_filled(sum(1 for _ in kept))
    return kept


def _new_folder(path):
    path = pathlib.Path(path).absolute()
    if path.exists():
        raise FileExistsError(
            f"`path` should be a folder that does not exist yet. What was kept there is read by "
            f"tf.data.Dataset.load. Received: {os.fspath(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"`path` should be in a folder that exists. Received: {os.fspath(path)!r}"
        )
    return path


def _saved(data, path):
    """Written beside `path`, which is there whole or not at all."""
    partial = storage.beside(path)
    partial.mkdir()
    try:
        # A cache first: `save` waits for ever on a dataset that raises an error half-way.
        cached = data.cache(os.fspath(partial / "cache"))
        _check_filled(sum(1 for _ in cached))
        cached.save(os.fspath(partial / "kept"))
        os.replace(partial / "kept", path)
    finally:
        _remove(partial)
    return tf.data.Dataset.load(os.fspath(path))


def _remove(folder):
    """A folder in which TensorFlow's threads may still write, of a pass that failed."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def _check_filled(count):
    if not count:
        raise ValueError("`data` should have at least one element, but it is empty.")
