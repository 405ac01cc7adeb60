"""The report's file: whole, harmless, small, and what stands in it is what was given."""

import dataclasses
import re
import sys

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("jinja2")
pytest.importorskip("PIL")

import keras_influence as ki
from tests import truth
from tests.report.pages import Page, pixels_of, scores_of, sha256

VALUES = [[0.3, -0.5, 0.1, 0.0], [-0.2, 0.4, -0.1, 0.25]]
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def scores():
    return scores_of(VALUES)


@pytest.fixture
def images(rng):
    return (rng.random((2, 8, 8)), np.array([1, 0])), (
        rng.random((4, 8, 8)),
        np.array([1, 0, 1, 0]),
    )


def test_the_file_needs_nothing_else(scores, images, tmp_path):
    path = scores.report(tmp_path / "report.html", *images, self_influence=np.arange(4.0))
    page = Page(path)
    assert path == tmp_path / "report.html"
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not page.named("link")
    assert not re.findall(r"https?:|//[a-z]|@import|url\(", "".join(page.styles))
    assert not re.findall(r"https?:|fetch\(|XMLHttp|innerHTML|eval\(", page.scripts[1])
    policy = page.policy
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    assert policy["style-src"] == sha256(page.styles[0])
    assert policy["script-src"] == sha256(page.scripts[1])


def test_what_a_user_names_stays_text(scores, tmp_path):
    data = np.array([EVIL] * 2), np.array([0, 1])
    train = np.array([EVIL, 'a"b', "c", "</script><b>"]), np.array([0, 1, 0, 1])
    path = scores.report(
        tmp_path / "r.html", data, train, class_names=[EVIL, "'><img src=x>"],
        title=EVIL, self_influence=np.ones(4),
    )  # fmt: skip
    page = Page(path)
    assert len(page.scripts) == 2
    assert not page.named("b") or "</script>" not in page.source.split("<main")[0]
    assert all("src" not in image for image in page.named("img"))
    assert page.text.count(EVIL) > 5
    assert page.data["trains"]["0"]["label"] == EVIL
    assert page.data["trains"]["3"]["text"] == "</script><b>"


def test_each_test_example_has_its_strongest_and_each_training_example_its_tests(scores, tmp_path):
    page = Page(scores.report(tmp_path / "r.html", k=2))
    one, two = page.data["tests"]
    # A score of zero is neither; the third proponent is beyond k.
    assert (one["top"], one["bottom"]) == ([[0, 0.3], [2, 0.1]], [[1, -0.5]])
    assert (two["top"], two["bottom"]) == ([[1, 0.4], [3, 0.25]], [[0, -0.2], [2, -0.1]])
    trains = page.data["trains"]
    assert trains["0"]["helps"] == [[0, 0.3]]
    assert trains["0"]["harms"] == [[1, -0.2]]
    assert trains["1"]["helps"] == [[1, 0.4]]
    assert trains["3"]["harms"] == []
    assert [trains["3"][name] for name in ("n_helps", "n_harms")] == [1, 0]
    page = Page(scores.report(tmp_path / "r.html", k=1, rows=[1]))
    assert [t["i"] for t in page.data["tests"]] == [1]
    assert set(page.data["trains"]) == {"0", "1"}
    assert "1 of 2 test examples are in this report" in page.text


def test_scores_on_a_disk_are_the_same_report(scores, tmp_path):
    zarr = pytest.importorskip("zarr")
    values = zarr.array(np.array(VALUES), chunks=(1, 3))
    kept = dataclasses.replace(scores, values=values)
    on_disk = Page(kept.report(tmp_path / "disk.html"))
    assert on_disk.data == Page(scores.report(tmp_path / "r.html")).data


def test_of_many_test_examples_some_are_shown(rng, tmp_path):
    page = Page(scores_of(rng.normal(size=(600, 3))).report(tmp_path / "r.html"))
    assert [t["i"] for t in page.data["tests"]] == list(range(500))
    assert "500 of 600 test examples are in this report" in page.text
    # By loss where a model knows it: y = 0.5, and the prediction is x.
    model = truth.ridge_model(1)
    model.set_weights([np.ones((1, 1))])
    x = rng.normal(size=(600, 1))
    test = x, np.full((600, 1), 0.5)
    path = scores_of(rng.normal(size=(600, 3))).report(tmp_path / "r.html", test, model=model)
    largest = np.sort(np.argsort(-((x[:, 0] - 0.5) ** 2))[:500])
    shown = Page(path).data["tests"]
    assert [t["i"] for t in shown] == largest.tolist()
    assert [float(t["predicted"]) for t in shown] == pytest.approx(x[largest, 0], rel=1e-3)


def test_the_suspicious_list_is_by_self_influence(scores, images, tmp_path):
    values = np.array([0.1, 3.0, 0.2, 2.0])
    page = Page(scores.report(tmp_path / "r.html", *images, self_influence=values, suspicious=3))
    assert [a["data-tick"] for a in page.named("input")] == ["1", "3", "2"]
    assert page.data["trains"]["1"]["self"] == 3.0
    with pytest.raises(ValueError, match="`self_influence` should be 4 numbers"):
        scores.report(tmp_path / "r.html", *images, self_influence=values[:3])


def test_pictures_are_the_users(scores, images, tmp_path):
    page = Page(scores.report(tmp_path / "r.html", *images))
    for at, image in enumerate(images[0][0]):
        (uri,) = page.data["tests"][at]["images"]
        assert (pixels_of(uri) == np.round(255 * image)).all()
    (uri,) = page.data["trains"]["2"]["images"]
    assert (pixels_of(uri) == np.round(255 * images[1][0][2])).all()


def test_all_forms_of_data_are_the_same_report(scores, rng, tmp_path):
    """Examples are fetched by position, whatever holds them."""
    x, y = rng.normal(size=(6, 3)).astype("float32"), np.array([0, 1, 1, 0, 1, 0])
    names = ["a", "b", "c"]
    pages = []
    dicts = [{n: x[rows, i] for i, n in enumerate(names)} for rows in (slice(2), slice(2, 6))]
    sets = [
        tf.data.Dataset.from_tensor_slices((d, y[r]))
        for d, r in zip(dicts, (slice(2), slice(2, 6)))
    ]
    forms = {
        "arrays": [((x[:2], y[:2]), (x[2:], y[2:])), {"feature_names": names}],
        "dicts": [((dicts[0], y[:2]), (dicts[1], y[2:])), {}],
        "datasets": [(sets[0].batch(2), sets[1].batch(3)), {}],
    }
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(x, columns=names)
    forms["frames"] = [((frame[:2], y[:2]), (frame[2:], y[2:])), {}]
    for form, (data, options) in forms.items():
        pages.append(Page(scores.report(tmp_path / f"{form}.html", *data, **options)).data)
    expected = [[n, f"{v:.5g}"] for n, v in zip(names, x[2 + 3])]
    assert pages[0]["trains"]["3"]["table"] == expected
    assert pages[0]["trains"]["3"]["label"] == "0"
    assert all(page == pages[0] for page in pages)


def test_a_model_adds_predictions_and_losses(rng, tmp_path):
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    closed = truth.SoftmaxRegression(x, y, 3, truth.L2)
    theta = closed.fit(np.zeros(15))
    model = truth.softmax_model(4, 3, truth.L2, cls=ki.InfluenceModel)
    truth.set_flat(model, theta)
    test, train = (x[:5], y[:5]), (x, y)
    path = model.report(tmp_path / "r.html", test, train, damping=0.01, method="direct", verbose=0)
    assert (truth.get_flat(model) == theta).all()
    page = Page(path)
    p = truth.softmax(closed.x @ theta.reshape(5, 3))
    g = closed.example_gradients(theta)
    s = np.linalg.solve(closed.hessian(theta) + 0.01 * np.eye(15), g.T)
    for i, entry in enumerate(page.data["tests"]):
        assert entry["predicted"] == str(p[i].argmax())
        assert entry.get("wrong", False) == (p[i].argmax() != y[i])
        assert entry["sure"] == pytest.approx(p[i].max(), rel=6e-3)
        assert entry["loss"] == pytest.approx(closed.losses(theta)[i], rel=6e-3)
        exact = g[i] @ s / 30
        assert entry["top"][0][:2] == [exact.argmax(), pytest.approx(exact.max(), rel=6e-3)]
    order = np.argsort(-(g.T * s).sum(0))
    assert [a["data-tick"] for a in page.named("input")] == [str(j) for j in order]


def test_without_model_and_data_there_are_positions(scores, tmp_path):
    page = Page(scores.report(tmp_path / "r.html"))
    assert set(page.data["tests"][0]) == {"i", "top", "bottom"}
    assert "Suspicious" not in page.text


@pytest.mark.slow
def test_a_thousand_training_and_two_hundred_test_images_stay_under_15_mb(rng, tmp_path):
    """Noise is what compresses worst."""
    for shape in ((32, 32, 3), (64, 64, 3)):
        test = rng.random((200, *shape)), rng.integers(0, 10, 200)
        train = rng.random((1000, *shape)), rng.integers(0, 10, 1000)
        scores = scores_of(rng.normal(size=(200, 1000)))
        path = scores.report(tmp_path / "r.html", test, train, self_influence=rng.random(1000))
        assert path.stat().st_size < 15e6
        page = Page(path)
        assert len(page.data["tests"]) == 200
        every = [
            image
            for e in (*page.data["tests"], *page.data["trains"].values())
            for image in e["images"]
        ]
        assert len(set(every)) == len(every)
        assert all(page.source.count(image) == 1 for image in every[:5])


def test_words_and_errors(scores, images, tmp_path):
    page = Page(scores.report(tmp_path / "r.html", *images))
    for words in (
        "if one training example had been left out of training",
        "in units of the loss",
        "λ = 0.01 was added",
        "2 of 2 linear systems were solved",
        "largest relative residual is 2.0e-07",
        "The Gauss-Newton matrix",
    ):
        assert words in page.text
    with pytest.raises(ValueError, match="`train` should be the 4 examples of the scores"):
        scores.report(tmp_path / "r.html", images[0], images[0])
    with pytest.raises(FileNotFoundError, match="`path` should be in a folder that exists"):
        scores.report(tmp_path / "no" / "r.html")
    with pytest.raises(ValueError, match="`k` should be an integer >= 1"):
        scores.report(tmp_path / "r.html", k=0)
    with pytest.raises(ValueError, match="`class_names` should have a name for each class"):
        scores.report(tmp_path / "r.html", *images, class_names=["one"])
    with pytest.raises(TypeError, match="`show` should return text"):
        scores.report(tmp_path / "r.html", *images, show=lambda x: 3)


def test_other_targets_and_paths_have_words_of_their_own(images, tmp_path):
    margins = scores_of(VALUES, target="margin", converged=np.array([True, False]))
    page = Page(margins.report(tmp_path / "r.html", *images))
    assert "in units of “margin”" in page.text
    assert "1 of 2 linear systems" in page.text
    for name, words in (
        ("TracIn", "checkpoints of training"),
        ("Replay", "derivative of the training run"),
        ("Representer", "the last layer's kernel"),
        ("SOURCE", "segments of training"),
        ("TRAK", "randomly projected"),
    ):
        path = scores_of(VALUES, curvature="none", solver={"class_name": name, "config": {}})
        page = Page(path.report(tmp_path / "r.html", *images))
        assert words in page.text
        assert "linear systems" not in page.text


def test_missing_packages_are_named(scores, tmp_path, monkeypatch):
    for package in ("jinja2", "PIL"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"keras-influence\[report\]"):
                scores.report(tmp_path / "r.html")
            if package == "jinja2":
                assert scores._repr_html_() is None


def test_a_notebook_shows_the_same_in_small(scores):
    text = scores._repr_html_()
    assert "0: +0.3" in text
    assert "1: −0.5" in text
    assert "2 test × 4 training examples" in text
    assert "<script" not in text


def test_other_labels_are_text(scores, rng, tmp_path):
    y = np.array([[1.5, -0.25], [0.0, 2.0]]), np.array([[3.25], [4.0]])
    page = Page(scores.report(tmp_path / "r.html", (rng.random((2, 3)), y)))
    assert [t["label"] for t in page.data["tests"]] == ["1.5, -0.25; 3.25", "0, 2; 4"]
    assert page.data["tests"][0]["top"] == [[0, 0.3], [2, 0.1]]


def test_features_that_differ_most_stand_with_each_neighbour(scores, tmp_path):
    x = np.array([[0.0, 0.0, 7.0], [0.0, 0.0, 7.0]])
    x_train = np.array([[1.0, 40.0, 7.0], [4.0, 0.0, 7.0], [0.0, 200.0, 7.0], [0.0, 0.0, 7.0]])
    y = np.zeros(2, int), np.zeros(4, int)
    page = Page(scores.report(tmp_path / "r.html", (x, y[0]), (x_train, y[1])))
    # Spreads 1.46 and 73.0: 40 of the second feature is less far than 1 of the first.
    (_, _, first), (_, _, second) = page.data["tests"][0]["top"]
    assert first == [["0", "0", "1"], ["1", "0", "40"]]
    assert second == [["1", "0", "200"]]


def test_show_says_what_is_shown(scores, rng, tmp_path):
    words = np.array(["good", "bad", "film", "dull"])
    tokens = rng.integers(0, 4, (6, 3))
    y = np.arange(6) % 2
    page = Page(
        scores.report(
            tmp_path / "r.html", (tokens[:2], y[:2]), (tokens[2:], y[2:]),
            show=lambda x: " ".join(words[x]),
        )
    )  # fmt: skip
    assert page.data["tests"][1]["text"] == " ".join(words[tokens[1]])


@pytest.mark.parametrize("names", [["cat", "dog"], {-1: "cat", 1: "dog"}])
def test_labels_of_minus_one_and_one_have_names_too(names, scores, images, tmp_path):
    test, train = ((x, 2 * y - 1) for x, y in images)
    page = Page(scores.report(tmp_path / "r.html", test, train, class_names=names))
    assert [page.data["tests"][i]["label"] for i in (0, 1)] == ["dog", "cat"]
    assert [page.data["trains"][str(j)]["label"] for j in (0, 1)] == ["dog", "cat"]
    for wrong in (3, "ab"):
        with pytest.raises(TypeError, match="`class_names` should be a list or dict"):
            scores.report(tmp_path / "r.html", test, train, class_names=wrong)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_a_target_needs_no_labels_in_a_report(as_dataset, tmp_path, rng):
    model = truth.ridge_model(3)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    test = tf.data.Dataset.from_tensor_slices((x[:2],)).batch(2) if as_dataset else (x[:2],)
    about = {"target": lambda x, y, y_pred: y_pred[:, 0], "feature_names": np.array(list("abc"))}
    page = Page(ki.write_report(model, tmp_path / "r.html", test, (x, y), verbose=0, **about))
    assert ["loss" in entry for entry in page.data["tests"]] == [False, False]
    assert [row[0] for row in page.data["tests"][0]["table"]] == ["a", "b", "c"]
    assert float(page.data["tests"][1]["table"][0][1]) == pytest.approx(x[1, 0], rel=1e-2)


def test_a_folder_and_rows_beyond_the_test_data_are_said(scores, images, tmp_path):
    with pytest.raises(IsADirectoryError, match="`path` should be the name of a file"):
        scores.report(tmp_path, *images)
    with pytest.raises(ValueError, match="`rows` should be positions in `test`, .* from 0 to 1"):
        scores.report(tmp_path / "r.html", *images, rows=[2])
