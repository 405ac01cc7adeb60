"""Files whole or not at all."""

import os
import stat

import numpy as np
import pytest

from keras_influence import storage


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    with storage.writing(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), storage.writing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with storage.writing(tmp_path / "file") as file:
            file.write(b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    with storage.writing(tmp_path / "link") as file:
        file.write(b"one")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_bytes() == b"one"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="`path` should be in a folder that exists.*none"),
        storage.writing(tmp_path / "none" / "file"),
    ):
        pass


@pytest.mark.parametrize("name", ["scores", "scores.npz", "scores.v2"])
def test_arrays_come_back_under_the_name_they_were_given(tmp_path, name):
    arrays = {"a": np.arange(3), "text": np.array("words"), "b": np.zeros((0, 2), np.float32)}
    storage.write_arrays(tmp_path / name, arrays)
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]
    for known in (tmp_path / name, next(tmp_path.iterdir()), str(tmp_path / name)):
        found = storage.read_arrays(known, "save", needed=("a",))
        assert set(found) == set(arrays)
        assert all((found[k] == v).all() and found[k].dtype == v.dtype for k, v in arrays.items())


def test_objects_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="objects cannot be written: bad"):
        storage.write_arrays(tmp_path / "file", {"bad": np.array([None])})
    assert not list(tmp_path.iterdir())


def test_files_of_others_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    storage.write_arrays(path, {"a": np.random.default_rng(0).normal(size=1000)})
    with pytest.raises(ValueError, match="written by Scores.save; .*file.npz lacks b, c"):
        storage.read_arrays(path, "Scores.save", needed=("a", "c", "b"))
    whole = path.read_bytes()
    broken = whole[:500] + bytes([whole[500] ^ 255]) + whole[501:]
    for damaged in (whole[:-100], whole[:50], b"", b"text", broken):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="written by Scores.save; .*is damaged"):
            storage.read_arrays(path, "Scores.save")
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError, match="it holds a single array"):
        storage.read_arrays(path, "Scores.save")
    with pytest.raises(FileNotFoundError):
        storage.read_arrays(tmp_path / "none", "Scores.save")
    with pytest.raises(
        TypeError, match="`path` should be the name of a file written by Scores.save"
    ):
        storage.read_arrays((np.zeros(2), np.zeros(2)), "Scores.save")
