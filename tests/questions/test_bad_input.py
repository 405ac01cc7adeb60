"""Bad calls end at once, in an error that names the argument and the way out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.engine.test_data import PyData

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


def _group(**options):
    return lambda m: ki.group_influence(m, TRAIN, TRAIN, **({"groups": [[0, 1]]} | options))


def _parameters(subset, **options):
    return lambda m: ki.parameter_influence(m, subset, TRAIN, **options)


def _inputs(**options):
    return lambda m: ki.input_influence(m, TRAIN, TRAIN, **options)


def _self(**options):
    return lambda m: ki.self_influence(m, **({"train": TRAIN} | options))


def _target(target):
    return lambda m: ki.influence(m, TRAIN, TRAIN, target=target)


def _variables(variables):
    return lambda m: ki.hvp(m, np.ones(15), TRAIN, variables=variables)


def _inverse(**options):
    return lambda m: ki.inverse_hvp(m, np.ones(15), **({"train": TRAIN} | options))


OTHER = keras.layers.Dense(2)
OTHER.build((None, 3))

MORE_CALLS = [
    ("group: no list", "`groups` should be a list", _group(groups=np.array([1, 2]))),
    ("group: none", "`groups` should be a list", _group(groups=[])),
    ("group: of words", r"`groups\[0\]` should be positions", _group(groups=["ab"])),
    ("group: beyond the end", r"`groups\[1\]`.*0 to 9", _group(groups=[[0], [10]])),
    ("group: negative", r"`groups\[0\]`", _group(groups=[[-1]])),
    ("group: empty", r"`groups\[0\]`", _group(groups=[np.array([], int)])),
    ("group: twice the same", r"`groups\[0\]`.*duplicates", _group(groups=[[1, 1]])),
    ("group: floats", r"`groups\[0\]`", _group(groups=[[0.5]])),
    ("group: matrix", r"`groups\[0\]`", _group(groups=[[[0, 1]]])),
    ("group: short mask", r"`groups\[0\]`", _group(groups=[np.array([True, False])])),
    ("group: order 3", "`order` should be 1 or 2", _group(order=3)),
    ("group: order true", "`order` should be 1 or 2", _group(order=True)),
    ("group: damping", "`damping`", _group(damping=-0.1)),
    ("group: method", "`method`", _group(method="best")),
    ("group: curvature", "`curvature`", _group(curvature=1)),
    ("group: target", "`target`", _group(target="margin")),
    ("parameters: beyond the end", "`train_subset`", _parameters([99])),
    ("parameters: empty", "`train_subset`", _parameters([])),
    ("parameters: word", "`train_subset`", _parameters("all")),
    ("parameters: None", "`train_subset`", _parameters(None)),
    ("parameters: order 0", "`order`", _parameters([1], order=0)),
    ("parameters: NaN examples", "`train_subset` has NaN", _parameters((changed(X, np.nan), Y))),
    ("parameters: lengths", "`train_subset`.*as many rows", _parameters((X, Y[:3]))),
    ("parameters: infinite damping", "`damping`", _parameters([1], damping=float("inf"))),
    ("inputs: beyond the end", "`indices`", _inputs(indices=[10])),
    ("inputs: floats", "`indices`", _inputs(indices=[0.1])),
    ("inputs: one number", "`indices`", _inputs(indices=3)),
    ("inputs: empty", "`indices`", _inputs(indices=[])),
    ("inputs: curvature", "`curvature`", _inputs(curvature="H")),
    ("self: damping", "`damping`", _self(damping=None)),
    ("self: method", "`method`", _self(method=ki.CG)),
    ("self: method of another kind", "`method`", _self(method=["cg"])),
    ("self: curvature", "`curvature`", _self(curvature=None)),
    ("self: a list", "`train` should be a tuple", _self(train=[X, Y])),
    ("self: dict", "`train` should be a tuple", _self(train={"x": X})),
    ("self: NaN labels", "in y", _self(train=(X, changed(Y, np.nan)))),
    ("self: batch_size", "`batch_size`", _self(batch_size="10")),
    ("self: negative batch_size", "`batch_size`", _self(batch_size=-5)),
    ("self: verbose", "`verbose`", _self(verbose=7)),
    ("target: text", "`target` should be a function", _target("margin")),
    ("target: number", "`target` should be a function", _target(3)),
    ("target: a scalar", "`target` should return floats", _target(lambda x, y, p: p[0, 0])),
    ("target: a matrix", "`target` should return floats", _target(lambda x, y, p: p)),
    ("target: integers", "`target` should return floats", _target(lambda x, y, p: y)),
    ("target: None", "`target` failed", _target(lambda x, y, p: None)),
    ("target: two arguments", "`target` failed", _target(lambda y, p: p[:, 0])),
    ("target: raises", "`target` failed", _target(lambda x, y, p: p["class"])),
    ("variables: text", "`variables` should be a layer", _variables("dense")),
    ("variables: number", "`variables` should be a layer", _variables([1])),
    ("variables: none chosen", "`variables` selects no", _variables(lambda v: False)),
    ("variables: empty list", "`variables` selects no", _variables([])),
    ("variables: another model", "`variables` has weights that are not", _variables(OTHER)),
    ("inverse: auto curvature", "`curvature`", _inverse(curvature="auto")),
    ("inverse: method", "`method`", _inverse(method="gmres")),
    ("inverse: method config", "`method`",
     _inverse(method={"class_name": "CG", "config": {"a": 1}})),
    ("inverse: empty config", "`method`", _inverse(method={})),
    ("inverse: method None", "`method`", _inverse(method=None)),
    ("inverse: damping list", "`damping`", _inverse(damping=[0.1])),
    ("inverse: boolean damping", "`damping`", _inverse(damping=True)),
    ("inverse: train of text", "made of arrays", _inverse(train=("x", "y"))),
    ("inverse: text labels", "`train`", _inverse(train=(X, np.array(list("abcabcabca"))))),
    ("inverse: object array", "`train`", _inverse(train=(X, np.array([object()] * 10)))),
    ("inverse: labels of no class", "NaN|labels|`train`|`loss`", _inverse(train=(X, Y + 7))),
    ("inverse: x of rank 1", "`train` does not fit", _inverse(train=(X[:, 0], Y))),
    ("inverse: x of rank 3", "`train` does not fit", _inverse(train=(X[None], Y[:1]))),
    ("inverse: nested x", "`train`", _inverse(train=({"a": X, "b": X}, Y))),
    ("inverse: class_weight text", "`class_weight`", _inverse(class_weight="balanced")),
    ("inverse: class_weight list", "`class_weight`", _inverse(class_weight=[1, 2])),
    ("inverse: class_weight NaN", "`class_weight`", _inverse(class_weight={0: float("nan")})),
    ("inverse: both weights", "class_weight", _inverse(
        train=(X, Y, np.ones(10)), class_weight={0: 1.0})),
    ("hvp: damping", "`damping`", lambda m: ki.hvp(m, np.ones(15), TRAIN, damping=-1)),
    ("hvp: curvature", "`curvature`", lambda m: ki.hvp(m, np.ones(15), TRAIN, curvature="auto")),
    ("hvp: huge v", "`v` should be finite", lambda m: ki.hvp(m, np.full(15, np.inf), TRAIN)),
    ("change: another shape", "`change`", lambda m: ki.with_change(m, [np.ones(3)])),
    ("change: NaN", "`change`", lambda m: ki.with_change(
        m, [np.full((4, 3), np.nan), np.ones(3)])),
    ("change: text", "`change`", lambda m: ki.with_change(m, "more")),
    ("change: no model", "`model`", lambda m: ki.with_change(3, [np.ones(3)])),
    ("callback: every", "`every`", lambda m: ki.InfluenceCallback(TRAIN, TRAIN, every="x")),
    ("callback: option", "unexpected keyword|`depth`", lambda m: m.fit(
        X, Y, verbose=0, callbacks=[ki.InfluenceCallback(TRAIN, TRAIN, depth=3)])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "call"), [c[1:] for c in MORE_CALLS], ids=[c[0] for c in MORE_CALLS]
)
def test_other_calls_refuse(message, call, model):
    before = truth.get_flat(model)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(model)
    if "callback" not in message and "keyword" not in message:
        assert (truth.get_flat(model) == before).all()


def test_there_are_a_hundred_bad_calls():
    assert len(CALLS) + len(MORE_CALLS) >= 100


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
