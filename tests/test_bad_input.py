"""Bad calls end at once, in an error that names the argument and the way out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.test_data import PyData

X, Y = np.random.default_rng(0).normal(size=(10, 4)), np.arange(10) % 3
TRAIN = (X, Y)
SLICES = tf.data.Dataset.from_tensor_slices(TRAIN)


class Endless(PyData):
    num_batches = None

    def __init__(self):
        super().__init__(TRAIN, 5)


def changed(array, value):
    array = array.astype(float).copy()
    array.flat[3] = value
    return array


@pytest.fixture
def model():
    return truth.softmax_model(4, 3)


# (what is wrong, message, call)
CALLS = [
    ("x and y of other lengths", "`train`.*as many rows.*9, 10", {"train": (X, Y[:9])}),
    ("weights of another length", "`train`.*as many rows", {"train": (X, Y, np.ones(4))}),
    ("empty train", "`train`.*at least one", {"train": (X[:0], Y[:0])}),
    ("empty test", "`test`.*at least one", {"test": (X[:0], Y[:0])}),
    ("NaN in train x", "`train` has NaN.* in x", {"train": (changed(X, np.nan), Y)}),
    ("infinity in train x", "`train` has NaN or infinite", {"train": (changed(X, np.inf), Y)}),
    ("NaN in test x", "`test` has NaN", {"test": (changed(X, np.nan), Y)}),
    ("NaN in weights", "in sample_weight", {"train": (X, Y, changed(np.ones(10), np.nan))}),
    ("an array, not a tuple", "`train` should be a tuple", {"train": X}),
    ("a list, not a tuple", "`train` should be a tuple", {"train": [X, Y]}),
    ("four parts", "`train` should be .x, y. or", {"train": (X, Y, Y, Y)}),
    ("a string", "`test` should be a tuple", {"test": "data"}),
    ("None", "`train` should be a tuple", {"train": None}),
    ("numbers for arrays", "made of arrays", {"train": (3.0, 1)}),
    ("another number of features", "`test` does not fit", {"test": (X[:, :3], Y)}),
    ("unbatched dataset", r"`train`.*\.batch\(256\)", {"train": SLICES}),
    ("endless dataset", r"`train` should be finite.*\.take", {"train": SLICES.batch(5).repeat()}),
    ("endless PyDataset", "`train` should be finite", {"train": Endless()}),
    ("empty dataset", "`train`.*at least one", {"train": SLICES.take(0).batch(4)}),
    ("batch_size with a dataset", "`batch_size` should be left out",
     {"train": SLICES.batch(5), "batch_size": 5}),
    ("negative damping", "`damping` should be a number >= 0. Received: damping=-1",
     {"damping": -1}),
    ("NaN damping", "`damping`", {"damping": float("nan")}),
    ("damping in words", "`damping`", {"damping": "big"}),
    ("unknown method", "`method`.*cg.*direct.*lissa.*ncg", {"method": "newton"}),
    ("unknown curvature", "`curvature`.*auto.*gauss_newton.*hessian", {"curvature": "fisher"}),
    ("batch_size of zero", "`batch_size` should be at least 1", {"batch_size": 0}),
    ("batch_size of one half", "`batch_size` should be an integer", {"batch_size": 0.5}),
    ("verbose in words", "`verbose`", {"verbose": "loud"}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_influence_refuses(message, options, model):
    before = truth.get_flat(model)
    arguments = {"test": (X, Y), "train": TRAIN, "damping": 0.1} | options
    with pytest.raises((ValueError, TypeError), match=message):
        ki.influence(model, **arguments)
    assert (truth.get_flat(model) == before).all()


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (np.ones(14), r"`v`.*\(15,\).*Received: v with shape \(14,\)"),
        (np.ones((3, 15)), "`v`"),
        (np.ones((15, 2, 1)), "`v`"),
        (np.ones((15, 0)), "`v`"),
        ([np.ones((4, 3))], "`v`.*2 arrays.*Received: 1"),
        ([np.ones((3, 4)), np.ones(3)], r"`v\[0\]` should have shape \(4, 3\)"),
        (np.full(15, np.nan), "`v` should be finite"),
        ("vector", "`v` should be a numeric array"),
        (None, "`v` should be a numeric array"),
        (np.ones(15, complex), "`v` should be a numeric array"),
    ],
)
def test_v_of_another_form_is_refused(v, message, model):
    for call in (ki.hvp, ki.inverse_hvp):
        with pytest.raises((ValueError, TypeError), match=message):
            call(model, v, TRAIN)


def uncompiled():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs))


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    return model


def frozen():
    model = truth.softmax_model(4, 3)
    model.trainable = False
    return model


def broken():
    model = truth.softmax_model(4, 3)
    truth.set_flat(model, np.full(15, np.nan))
    return model


def lossless():
    model = uncompiled()
    model.compile("sgd")
    return model


def batch_loss():
    model = uncompiled()
    model.compile("sgd", lambda y, z: keras.ops.max(z - keras.ops.cast(y, z.dtype), axis=0))
    return model


def mixing_loss():
    model = uncompiled()
    model.compile("sgd", lambda y, z: keras.ops.max(z, axis=-1) - keras.ops.mean(z))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (uncompiled, "`model` should be compiled"),
        (unbuilt, "`model` should be built"),
        (frozen, "`model` should have trainable weights"),
        (broken, "`model` has NaN or infinite values in dense.*kernel"),
        (lossless, "`model` should be compiled with a loss"),
        (batch_loss, "does not give one value per example"),
        (mixing_loss, "not a mean or sum over examples"),
        (lambda: "model", "`model` should be a keras.Model"),
    ],
)
def test_a_model_that_cannot_be_asked_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ki.influence(make(), (X, Y[:, None]), (X, Y[:, None]))


def test_direct_is_refused_for_a_large_model(model):
    with pytest.raises(ValueError, match="method='cg'"):
        ki.influence(model, TRAIN, TRAIN, method=ki.Direct(max_size=10))
