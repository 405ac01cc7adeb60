"""The compiled call of a large model: what it gives, when it is made anew, and when it is not there."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence import _keras
from keras_influence.engine.loss import looks
from tests import truth

layers = keras.layers


def deep(activation="tanh", last="softmax"):
    hidden = [layers.Dense(3, activation) for _ in range(20)]
    model = keras.Sequential([keras.Input((3,)), *hidden, layers.Dense(2, last)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture
def traced():
    """The calls of a model while it is traced, as they come."""
    return []


@pytest.fixture
def eager(traced, monkeypatch):
    """The calls of a model layer by layer, as they come."""
    calls, original = [], _keras.call_model

    def counted(model, x):
        (calls if tf.executing_eagerly() else traced).append(x)
        return original(model, x)

    monkeypatch.setattr(_keras, "call_model", counted)
    return calls


@pytest.fixture
def x(rng):
    return tf.constant(rng.normal(size=(6, 3)))


def outputs(model, x):
    """For six examples, and then for the first two."""
    with looks.remembering(model):
        found = []
        for part in (x, x[:2]):
            with looks.called(model, (part,)) as (_, y_pred):
                found.append(y_pred)
        return found


def test_a_large_model_is_called_once_and_compiled(x, eager):
    model = deep()
    for _ in range(2):
        whole, part = outputs(model, x)
        np.testing.assert_allclose(part, model(x)[:2], rtol=1e-12)
        # What Keras's cross-entropies look for goes along.
        np.testing.assert_allclose(tf.nn.softmax(part._keras_logits), part, rtol=1e-12)
    assert len(eager) == 2
    small = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    outputs(small, x)
    assert len(eager) == 4


def test_it_follows_weights_and_what_was_set_in_place(x, eager, traced):
    model = deep()
    outputs(model, x)
    model.layers[0].kernel.assign_add(np.ones((3, 3)))
    np.testing.assert_allclose(outputs(model, x)[1], model(x)[:2], rtol=1e-12)
    assert len(traced) == 1
    model.layers[3].activation = keras.activations.sigmoid
    np.testing.assert_allclose(outputs(model, x)[1], model(x)[:2], rtol=1e-12)
    assert len(eager) == 3 and len(traced) == 2


def test_it_goes_with_the_model(x):
    model = deep()
    outputs(model, x)
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_masks_go_along(rng):
    tokens = tf.constant([[1, 2, 0], [3, 0, 0], [1, 1, 1]])
    embedding = layers.Embedding(4, 2, mask_zero=True)
    model = keras.Sequential([keras.Input((3,)), embedding, layers.LSTM(2, return_sequences=True)])
    _, part = outputs(model, tokens)
    assert (part._keras_mask.numpy() == [[True, True, False], [True, False, False]]).all()
    np.testing.assert_allclose(part, model(tokens)[:2], rtol=1e-12)


def test_what_cannot_be_compiled_is_called_as_it_is(x, eager):
    model = deep(lambda t: tf.constant(np.tanh(t.numpy())))  # A traced tensor has no `numpy`.
    for _ in range(2):
        np.testing.assert_allclose(outputs(model, x)[1], model(x)[:2], rtol=1e-12)
    assert len(eager) == 4


def test_a_model_that_gives_more_at_each_call_is_called_as_it_is(x, eager):
    count = [0.0]

    def growing(t):
        count[0] += 1.0
        return t + count[0]

    model = deep(growing, last=None)
    outputs(model, x)
    assert len(eager) == 2


def test_data_that_do_not_fit_are_told_by_the_model(x):
    model = deep()
    with looks.remembering(model):
        outputs(model, x)
        with (
            pytest.raises(ValueError, match="`test` does not fit the model's inputs"),
            looks.called(model, (x[:, :2],), "test"),
        ):
            pass


def test_products_are_right_and_take_two_calls_of_a_large_model(rng, eager):
    model, train = deep(), (rng.normal(size=(20, 3)), rng.integers(0, 2, 20))
    v = rng.normal(size=model.count_params())
    for _ in range(2):
        found = ki.hvp(model, v, train)
        # Once for itself, and once more to see that it is not random.
        assert len(eager) == 2
        eager.clear()
        model.layers[5].kernel.assign_add(np.ones((3, 3)))
    model.layers[5].kernel.assign_sub(np.ones((3, 3)))
    assert truth.relative_error(found, truth.finite_difference_hvp(model, *train, v)) < 1e-6
