"""InfluenceScores: ranking, keeping, showing."""

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


def test_load_refuses_another_file(tmp_path):
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    with pytest.raises(ValueError, match="InfluenceScores.save"):
        ki.InfluenceScores.load(tmp_path / "other.npz")


def test_to_pandas(scores):
    frame = scores.to_pandas()
    assert frame.loc[1, 3] == 0.25
    assert (frame.index.name, frame.columns.name) == ("test", "train")


def test_gallery_of_images_shows_test_and_neighbours(scores, tmp_path, rng):
    test = (rng.random((2, 8, 8)), np.array([3, 4]))
    train = (rng.random((4, 8, 8)), np.array([3, 8, 3, 4]))
    figure = scores.plot(test, train, k=2)
    titles = [[axis.get_title() for axis in figure.axes[r * 5 : r * 5 + 5]] for r in range(2)]
    assert titles[0] == ["test 0\n3", "0: 3\n+0.3", "2: 3\n+0.1", "1: 8\n-0.5", "3: 4\n+0"]
    assert (figure.axes[0].images[0].get_array() == _stretched(test[0][0])).all()
    assert (figure.axes[3].images[0].get_array() == _stretched(train[0][1])).all()
    figure.savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 5000


def _stretched(image):
    return (image - image.min()) / (image.max() - image.min())


def test_gallery_of_other_data_is_a_table(scores, rng):
    test = (rng.random((2, 5)), np.array([0, 1]))
    train = (rng.random((4, 5)), np.eye(2)[[0, 1, 0, 1]])
    figure = scores.plot(test, train, k=2, class_names=["cat", "dog"])
    cells = figure.axes[0].tables[0].get_celld()
    assert cells[1, 0].get_text().get_text() == "0 (cat)"
    assert cells[1, 1].get_text().get_text() == "0 (cat)  +0.3\n2 (cat)  +0.1"
    assert cells[2, 2].get_text().get_text().startswith("0 (cat)  -0.2")


def test_gallery_refuses_other_data(scores, rng):
    with pytest.raises(ValueError, match="`train` should be the 4 examples"):
        scores.plot((rng.random((2, 5)), np.zeros(2)), (rng.random((3, 5)), np.zeros(3)))
