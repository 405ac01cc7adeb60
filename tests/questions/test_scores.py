"""InfluenceScores: ranking, keeping, showing."""

import copy
import dataclasses

import numpy as np
import pytest

import keras_influence as ki


@pytest.fixture
def scores():
    values = np.array([[0.3, -0.5, 0.1, 0.0], [-0.2, 0.4, -0.1, 0.25]])
    return ki.InfluenceScores(
        values=values,
        residual=np.array([1e-6, 2e-3]),
        iterations=np.array([3, 9]),
        converged=np.array([True, False]),
        solver=ki.CG().get_config(),
        curvature="hessian",
        damping=0.01,
        parameters=("dense/kernel",),
    )


def test_top_and_bottom_are_proponents_and_opponents(scores):
    assert scores.top(2).indices.tolist() == [[0, 2], [1, 3]]
    assert scores.top(2).values.tolist() == [[0.3, 0.1], [0.4, 0.25]]
    assert scores.bottom(1).indices.tolist() == [[1], [0]]
    assert scores.bottom(1).values.tolist() == [[-0.5], [-0.2]]


def test_of_equal_scores_the_first_comes_first(scores):
    values = np.array([[0.0, 1.0, 0.0, 1.0], [2.0, 2.0, np.nan, 2.0]])
    equal = dataclasses.replace(scores, values=values)
    assert equal.top(3).indices.tolist() == [[1, 3, 0], [0, 1, 3]]
    assert equal.bottom(3).indices.tolist() == [[0, 2, 1], [0, 1, 3]]
    assert equal.top(4).indices.tolist() == [[1, 3, 0, 2], [0, 1, 3, 2]]


@pytest.mark.parametrize("part", [1, 5, 100])
def test_rankings_of_many_are_made_in_parts(part, scores, rng, monkeypatch):
    monkeypatch.setattr("keras_influence.questions.ranking._PART", part)
    values = rng.normal(size=(9, 20))
    ranking = dataclasses.replace(scores, values=values).top(6)
    assert (ranking.indices == np.argsort(-values, axis=1)[:, :6]).all()
    assert (ranking.values == -np.sort(-values, axis=1)[:, :6]).all()


def test_k_beyond_the_training_data_gives_all(scores):
    assert scores.top(9).indices.shape == (2, 4)


@pytest.mark.parametrize("k", [0, -1, 1.5, "a", True])
def test_bad_k_is_refused(k, scores):
    with pytest.raises(ValueError, match="`k` should be an integer >= 1"):
        scores.top(k)


def test_repr_says_sign_unit_and_evidence(scores):
    text = repr(scores)
    for words in ("2 test x 4 training", "left out", "units of the loss", "helpful", "harmful",
                  "values[1, 1] = +0.4", "values[0, 1] = -0.5", "CG", "0.01", "1 of 2",
                  "2.0e-03"):  # fmt: skip
        assert words in text


def test_is_an_array(scores):
    assert (np.asarray(scores) == scores.values).all()
    assert np.asarray(scores, np.float32).dtype == np.float32
    assert len(scores) == 2


def test_save_and_load(scores, tmp_path):
    scores.save(tmp_path / "scores.npz")
    loaded = ki.InfluenceScores.load(tmp_path / "scores.npz")
    for field in ("values", "residual", "iterations", "converged"):
        assert (getattr(loaded, field) == getattr(scores, field)).all()
    for field in ("solver", "curvature", "damping", "parameters", "reason"):
        assert getattr(loaded, field) == getattr(scores, field)


@pytest.mark.parametrize("name", ["scores", "scores.npz", "run.1"])
def test_a_file_is_found_by_the_name_it_was_given(name, scores, tmp_path):
    scores.save(tmp_path / name)
    assert (ki.InfluenceScores.load(tmp_path / name).values == scores.values).all()


def test_load_refuses_a_truncated_file(scores, tmp_path):
    path = tmp_path / "scores.npz"
    scores.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"written by InfluenceScores.save.*scores.npz"):
        ki.InfluenceScores.load(path)


def test_load_refuses_another_file(tmp_path):
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    with pytest.raises(ValueError, match="InfluenceScores.save"):
        ki.InfluenceScores.load(tmp_path / "other.npz")


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "scores.zarr").mkdir()
    with pytest.raises(ValueError, match=r"scores.zarr is a folder.*`InfluenceScores.open`"):
        ki.InfluenceScores.load(tmp_path / "scores.zarr")
    with pytest.raises(FileNotFoundError, match="`path` should be.*there is no .*nowhere"):
        ki.InfluenceScores.load(tmp_path / "nowhere")


def test_results_with_arrays_are_equal_to_themselves_alone(scores):
    assert scores == scores
    assert scores != copy.deepcopy(scores)
    assert scores.top(1) != scores.top(1)
    assert len({scores, copy.deepcopy(scores)}) == 2
    everything = [*vars(ki).values(), *vars(ki.evaluation).values()]
    results = [c for c in everything if isinstance(c, type) and dataclasses.is_dataclass(c)]
    for result in results:
        if "np.ndarray" in (types := str([f.type for f in dataclasses.fields(result)])):
            assert result.__eq__ is object.__eq__, (result, types)


def test_to_pandas(scores):
    frame = scores.to_pandas()
    assert frame.loc[1, 3] == 0.25
    assert (frame.index.name, frame.columns.name) == ("test", "train")
