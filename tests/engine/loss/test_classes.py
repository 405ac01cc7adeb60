"""Labels read as classes, outputs as probabilities."""

import keras
import numpy as np
import pytest

from keras_influence.engine.loss.classes import probabilities, read_classes


def compiled(loss):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("y", "width", "given", "values"),
    [
        ([2, 0, 1], 3, [2, 0, 1], [0, 1, 2]),
        ([[2], [0]], None, [2, 0], [0, 1, 2]),
        ([[0, 1], [1, 0]], 2, [1, 0], [0, 1]),
        ([[0.0], [1.0]], 1, [0, 1], [0, 1]),
        ([-1.0, 1.0, 1.0], 1, [0, 1, 1], [-1, 1]),
        ([2.0, 0.0], 3, [2, 0], [0, 1, 2]),
        # Sorted, the other class comes late.
        ([-1] * 1500 + [1], 1, [0] * 1500 + [1], [-1, 1]),
        ([[1.0]] * 1500 + [[-1.0]], 1, [1] * 1500 + [0], [-1, 1]),
    ],
)
def test_labels_of_classifiers(y, width, given, values):
    found = read_classes(np.array(y), width)
    assert found.given.tolist() == given
    assert found.values.tolist() == values


@pytest.mark.parametrize(
    ("y", "width"),
    [
        ([0.5, 1.0], None),
        ([3, 7], 1),
        ([3.0, 7.0], None),
        ([[0.5, 0.5]], 2),
        ([[1, 1]], 2),
        (np.zeros((2, 3, 3)), None),
        (["cat", "dog"], None),
        ([-3, 2], 4),
    ],
)
def test_other_labels_are_no_classes(y, width):
    assert read_classes(np.array(y), width) is None


def test_other_classes_have_the_form_of_the_labels():
    one_hot = read_classes(np.eye(3)[[0, 1]], 3)
    assert (one_hot.like(np.array([2, 0]), (2, 3)) == np.eye(3)[[2, 0]]).all()
    signs = read_classes(np.array([[-1.0], [1.0]]), 1)
    assert signs.like(np.array([1, 0]), (2, 1)).tolist() == [[1], [-1]]


def test_probabilities_by_hand():
    binary = read_classes(np.array([0, 1]), 1)
    plain = compiled("binary_crossentropy")
    assert probabilities([[0.2, 0.8]], plain, binary) == pytest.approx(np.array([[0.2, 0.8]]))
    assert probabilities([[0.3]], plain, binary) == pytest.approx(np.array([[0.7, 0.3]]))
    # e⁰ : e^(log 3) is 1 : 3, as logits of two classes and of one.
    expected = np.array([[0.25, 0.75]])
    logits = compiled(keras.losses.BinaryCrossentropy(from_logits=True))
    assert probabilities(
        [[np.log(3) / 2 + 0.1, np.log(3) * 1.5 + 0.1]], logits, binary
    ) == pytest.approx(expected)
    assert probabilities([[-np.log(3)]], plain, binary) == pytest.approx(expected[:, ::-1])
    # A logit between 0 and 1 is told from a probability by the loss alone.
    assert probabilities([0.0], logits, binary) == pytest.approx(np.array([[0.5, 0.5]]))
    assert probabilities([0.0], plain, binary) == pytest.approx(np.array([[1.0, 0.0]]))
    # A margin, of labels of -1 and 1 or of a hinge loss, is none whatever it is.
    signed, hinge = read_classes(np.array([-1, 1]), 1), compiled("hinge")
    # Keras reads what a loss is when it is used.
    hinge.evaluate(np.zeros((1, 2)), np.zeros((1, 1)), verbose=0)
    assert probabilities([0.0], plain, signed) == pytest.approx(np.array([[0.5, 0.5]]))
    assert probabilities([[np.log(3)]], hinge, binary) == pytest.approx(expected)
    assert probabilities([0.0], hinge, binary) == pytest.approx(np.array([[0.5, 0.5]]))
