"""The gallery of test examples beside their proponents and opponents."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import keras_influence as ki
from tests.report.pictures import is_in, pixels

PROPONENT, OPPONENT = "#1b7837", "#b2182b"


@pytest.fixture
def scores():
    values = np.array([[0.3, -0.5, 0.1, 0.0], [-0.2, 0.4, -0.1, 0.25]])
    return ki.InfluenceScores(
        values=values,
        residual=np.zeros(2),
        iterations=np.ones(2, int),
        converged=np.ones(2, bool),
        solver=ki.CG().get_config(),
        curvature="hessian",
        damping=0.01,
    )


def stretched(image):
    return (image - image.min()) / (image.max() - image.min())


def test_images_show_the_test_example_and_its_neighbours(scores, rng):
    test = (rng.random((2, 8, 8)), np.array([3, 4]))
    train = (rng.random((4, 8, 8)), np.array([3, 8, 3, 4]))
    figure = scores.plot(test, train, k=2)
    titles = [[axis.get_title() for axis in figure.axes[r * 5 : r * 5 + 5]] for r in range(2)]
    assert titles[0] == ["test 0\n3", "0: 3\n+0.3", "2: 3\n+0.1", "1: 8\n-0.5", "3: 4\n+0"]
    assert titles[1] == ["test 1\n4", "1: 8\n+0.4", "3: 4\n+0.25", "0: 3\n-0.2", "2: 3\n-0.1"]
    for column, image in enumerate((test[0][0], *train[0][[0, 2, 1, 3]])):
        assert (figure.axes[column].images[0].get_array() == stretched(image)).all()
    assert "proponents: without them its loss would rise" in figure.get_suptitle()
    picture = pixels(figure)
    assert is_in(picture, PROPONENT)
    assert is_in(picture, OPPONENT)


def test_images_of_one_colour_and_in_colour_are_drawn(scores, rng):
    for shape in ((4, 6, 6, 1), (4, 6, 6, 3)):
        images = rng.random(shape)
        images[0] = 0.5
        figure = scores.plot((images[:2], np.arange(2)), (images, np.arange(4)), k=1, rows=[1])
        assert len(figure.axes) == 3
        assert (figure.axes[0].images[0].get_array() == stretched(np.squeeze(images[1]))).all()
        assert is_in(pixels(figure), OPPONENT)


def test_other_data_are_a_table(scores, rng):
    test = (rng.random((2, 5)), np.array([0, 1]))
    train = (rng.random((4, 5)), np.eye(2)[[0, 1, 0, 1]])
    figure = scores.plot(test, train, k=2, class_names=["cat", "dog"])
    cells = {k: v.get_text() for k, v in figure.axes[0].tables[0].get_celld().items()}
    assert cells[0, 1].get_text() == "proponents: index (label) score"
    assert cells[1, 0].get_text() == "0 (cat)"
    assert cells[1, 1].get_text() == "0 (cat)  +0.3\n2 (cat)  +0.1"
    assert cells[2, 2].get_text() == "0 (cat)  -0.2\n2 (cat)  -0.1"
    assert (cells[1, 1].get_color(), cells[1, 2].get_color()) == (PROPONENT, OPPONENT)
    assert is_in(pixels(figure), PROPONENT, tolerance=40)


def test_without_data_there_are_positions(scores):
    figure = scores.plot(k=1, rows=[1], score_format="{:.3f}")
    cells = {k: v.get_text().get_text() for k, v in figure.axes[0].tables[0].get_celld().items()}
    assert [cells[1, column] for column in range(3)] == ["1", "1  0.400", "0  -0.200"]


def test_numbers_as_labels_are_short(scores, rng):
    test = (rng.random((2, 5)), np.array([[0.123456], [2.0]]))
    figure = scores.plot(test, k=1)
    cells = figure.axes[0].tables[0].get_celld()
    assert cells[1, 0].get_text().get_text() == "0 (0.123)"


def test_other_data_are_refused(scores, rng):
    good = (rng.random((2, 5)), np.zeros(2))
    with pytest.raises(ValueError, match="`train` should be the 4 examples of the scores"):
        scores.plot(good, (rng.random((3, 5)), np.zeros(3)))
    with pytest.raises(TypeError, match="`train` should be a tuple"):
        scores.plot(good, rng.random((4, 5)))


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_examples_with_several_outputs_are_shown_by_their_positions(kind, scores, rng):
    """Labels of one of them would not say what an example is."""

    def examples(n):
        y = [rng.random((n, 1)), np.arange(n)]
        return rng.random((n, 5)), y if kind == "list" else {"a": y[0], "b": y[1]}

    figure = scores.plot(examples(2), examples(4), k=1)
    cells = {k: v.get_text().get_text() for k, v in figure.axes[0].tables[0].get_celld().items()}
    assert [cells[1, column] for column in range(3)] == ["0", "0  +0.3", "1  -0.5"]
    with pytest.raises(ValueError, match="`train` should be the 4 examples"):
        scores.plot(examples(2), examples(3), k=1)


def test_labels_may_be_a_list(scores, rng):
    figure = scores.plot((rng.random((2, 5)), [7, 8]), k=1)
    assert figure.axes[0].tables[0].get_celld()[1, 0].get_text().get_text() == "0 (7)"


def test_names_of_labels_that_are_no_places_in_a_list(scores, rng):
    x = rng.random((4, 5))

    def labels(y, **options):
        figure = scores.plot((x[:2], y[:2]), (x, y), k=1, **options)
        cells = {
            k: v.get_text().get_text() for k, v in figure.axes[0].tables[0].get_celld().items()
        }
        return [cells[row, 0] for row in sorted({row for row, _ in cells} - {0})]

    signs, names = np.array([-1, 1, 1, -1]), ["cat", "dog"]
    assert labels(signs, class_names=names) == ["0 (cat)", "1 (dog)"]
    assert labels(signs, class_names={-1: "cat", 1: "dog"}) == ["0 (cat)", "1 (dog)"]
    assert labels(signs, class_names=[b"cat", b"dog"]) == ["0 (cat)", "1 (dog)"]
    assert labels(signs * 0.7, class_names=names) == ["0 (-0.7)", "1 (0.7)"]
    assert labels(signs, rows=[False, True]) == ["1 (1)"]
    with pytest.raises(ValueError, match="`class_names` should have a name for each class"):
        labels(signs + 2, class_names=names)
    with pytest.raises(ValueError, match="`rows`"):
        labels(signs, rows=[2])


@pytest.mark.parametrize("shape", [(8, 8, 2), (1, 1, 3), (20, 3)])
def test_arrays_that_are_no_picture_are_a_table(shape, scores, rng):
    x = rng.random((4, *shape))
    figure = scores.plot((x[:2], np.arange(2)), (x, np.arange(4)), k=1)
    assert len(figure.axes) == 1
    assert figure.axes[0].tables


def test_examples_without_labels_are_drawn(scores, rng):
    images = rng.random((4, 6, 6))
    for test in ((images[:2],), (images[:2], None)):
        figure = scores.plot(test, (images,), k=1)
        assert figure.axes[0].get_title() == "test 0\n"
        assert (figure.axes[0].images[0].get_array() == stretched(images[0])).all()
    with pytest.raises(ValueError, match="`test` should be the 2 examples"):
        scores.plot((images,), (images,))
