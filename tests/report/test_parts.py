"""How single examples are shown: which part is a picture, text or a number."""

import numpy as np
import pytest

pytest.importorskip("PIL")

from keras_influence.report.differences import largest, spread_of
from keras_influence.report.parts import brightness, parts_of, table_of, thumbnail
from tests.report.pages import pixels_of


def test_what_is_a_picture_text_and_a_number():
    parts = parts_of(
        {"photo": np.zeros((5, 5, 3)), "age": np.array(3.0), "note": np.array(b"h\xc3\xa9")}
    )
    assert [image.shape for image in parts.images] == [(5, 5, 3)]
    assert parts.numbers == {"age": 3.0}
    assert parts.text == "hé"
    assert parts_of({"": np.arange(3.0)}).numbers == {"0": 0.0, "1": 1.0, "2": 2.0}
    signal = parts_of({"": np.array([1.0, 3.0] * 1000)})
    assert not signal.numbers
    assert ("mean", "2") in signal.rows
    assert ("deviation", "1") in signal.rows
    # Steps of three features are no picture.
    assert not parts_of({"": np.zeros((100, 3))}).images
    assert len(table_of(parts_of({"": np.arange(100.0)}))) == 41


def test_brightness_is_that_of_the_data():
    assert brightness([np.array([[0.0, 0.7]])]) == (0.0, 1.0)
    assert brightness([np.array([[-0.9, 0.7]])]) == (-1.0, 1.0)
    assert brightness([np.array([[0, 200]], np.uint8)]) == (0.0, 255.0)
    assert brightness([np.array([[0.0, 250.0]])]) == (0.0, 255.0)
    assert brightness([np.array([[0.0, 16.0]])]) == (0.0, 16.0)
    assert brightness([np.array([[-2.0, 3.0]])]) == (-2.0, 3.0)


def test_thumbnails_keep_colours_and_are_small():
    image = np.zeros((300, 200, 3))
    image[..., 0] = 1
    shown = pixels_of(thumbnail(image, (0.0, 1.0)))
    assert shown.shape == (96, 64, 3)
    assert np.abs(shown.reshape(-1, 3).mean(0) - [255, 0, 0]).max() < 4
    exact = np.arange(16.0).reshape(4, 4, 1)
    assert (pixels_of(thumbnail(exact, (0.0, 15.0))) == 17 * exact[..., 0]).all()


def test_the_largest_differences_are_in_units_of_the_spread():
    vectors = [{"a": 0.0, "b": 0.0, "c": 1.0}, {"a": 2.0, "b": 200.0, "c": 1.0}]
    spread = spread_of(vectors)
    assert spread == {"a": 1.0, "b": 100.0, "c": 0.0}
    # 3 spreads of a, 1 of b; c never changes.
    found = largest({"a": 0.0, "b": 0.0, "c": 1.0}, {"a": 3.0, "b": 100.0, "c": 5.0}, spread)
    assert found == [("a", 0.0, 3.0), ("b", 0.0, 100.0)]
    assert largest({"a": 1.0}, {"a": 1.0}, spread) == []
