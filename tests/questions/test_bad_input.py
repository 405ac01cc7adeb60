"""Bad calls end at once, in an error of the right kind that names the argument and the way out.

Settings have tests of their own, in `test_settings`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.loss.terms import RefusedLoss
from tests import truth
from tests.engine.test_data import PyData

X, Y = np.random.default_rng(0).normal(size=(10, 4)), np.arange(10) % 3
TRAIN = (X, Y)
SLICES = tf.data.Dataset.from_tensor_slices(TRAIN)
OTHER = keras.layers.Dense(2)
OTHER.build((None, 3))


class Endless(PyData):
    num_batches = None

    def __init__(self):
        super().__init__(TRAIN, 5)


def changed(array, value):
    array = array.astype(float).copy()
    array.flat[3] = value
    return array


def refuses(call, model, error, words):
    """The call fails with exactly this kind of error, and leaves the weights as they were."""
    before = truth.get_flat(model)
    with pytest.raises(error, match=words) as caught:
        call(model)
    assert caught.type is error
    assert (truth.get_flat(model) == before).all()


@pytest.fixture(scope="module")
def model():
    """One for all calls, which are to leave it as it was: see `refuses`."""
    return truth.softmax_model.fresh(4, 3)


def cases(*rows):
    """Parameters from rows of (name, kind of error, words of its message, what is given)."""
    values = [pytest.param(*rest, id=name) for name, *rest in rows]
    return pytest.mark.parametrize(("error", "words", "given"), values)


# ---- data


@cases(
    ("lengths of x and y", ValueError, r"`{}` should have as many rows.*x: \[10\], y: \[9\]", (X, Y[:9])),
    ("length of weights", ValueError, "`{}` should have as many rows", (X, Y, np.ones(4))),
    ("empty", ValueError, "`{}` should have at least one example", (X[:0], Y[:0])),
    ("NaN in x", ValueError, "`{}` has NaN or infinite values in x", (changed(X, np.nan), Y)),
    ("infinity in x", ValueError, "`{}` has NaN or infinite", (changed(X, np.inf), Y)),
    ("NaN in y", ValueError, "`{}` has NaN.* in y", (X, changed(Y, np.nan))),
    ("NaN in weights", ValueError, "in sample_weight", (X, Y, changed(np.ones(10), np.nan))),
    ("an array", TypeError, "`{}` should be a tuple .*ndarray.*it is \\(x,\\)", X),
    ("a list", TypeError, "`{}` should be a tuple .*list.*Write \\(x, y\\)", [X, Y]),
    ("a generator", TypeError, "`{}` should be a tuple .*from_generator", (b for b in [(X, Y)])),
    ("a dict", TypeError, "`{}` should be a tuple .*dict", {"x": X}),
    ("text", TypeError, "`{}` should be a tuple .*str", "data"),
    ("None", TypeError, "`{}` should be a tuple .*NoneType", None),
    ("four parts", ValueError, "`{}` should be .x, y. or .*a tuple of 4", (X, Y, Y, Y)),
    ("numbers for arrays", TypeError, "`{}`: x should be made of arrays", (3.0, 1)),
    ("text for arrays", TypeError, "`{}`: x should be made of arrays", ("x", "y")),
    ("text labels", ValueError, "`{}` is not what Keras can read", (X, np.array(list("abcabcabca")))),
    ("no labels of one output", TypeError, "`{}`: y holds None.*give zeros", (X, [Y, None])),
    ("objects", ValueError, "`{}` is not what Keras can read", (X, np.array([object()] * 10))),
    ("other features", ValueError, "`{}` does not fit the model's inputs", (X[:, :3], Y)),
    ("x of rank 1", ValueError, "`{}` does not fit the model's inputs", (X[:, 0], Y)),
    ("x of rank 3", ValueError, "`{}` does not fit the model's inputs", (X[None], Y[:1])),
    ("nested x", ValueError, "`{}` does not fit the model's inputs", ({"a": X, "b": X}, Y)),
    ("labels of no class", ValueError, "(?s)`{}` does not fit.*label value of ", (X, Y + 7)),
    ("unbatched", ValueError, r"`{}` should be batched.*\.batch\(256\)", SLICES),
    ("endless dataset", ValueError, r"`{}` should be finite.*\.take", SLICES.batch(5).repeat()),
    ("endless PyDataset", ValueError, "`{}` should be finite", Endless()),
    ("empty dataset", ValueError, "`{}` should have at least one", SLICES.take(0).batch(4)),
)  # fmt: skip
@pytest.mark.parametrize("name", ["train", "test"])
def test_data(error, words, given, name, model):
    data = {"train": TRAIN, "test": TRAIN} | {name: given}
    refuses(lambda m: ki.influence(m, **data), model, error, words.format(name))


def test_inside_a_tf_function(model):
    call = tf.function(lambda: ki.influence(model, TRAIN, TRAIN).values)
    refuses(lambda m: call(), model, RuntimeError, "inside a `tf.function`.*after `fit`")


@cases(
    ("batch_size with a dataset", ValueError, "`batch_size` should be left out when `train` is",
     {"train": SLICES.batch(5), "batch_size": 5}),
    ("both kinds of weights", ValueError, "`train` is not what Keras can read.*class_weight",
     {"train": (X, Y, np.ones(10)), "class_weight": {0: 1.0}}),
    ("a matrix too large to write out", ValueError, "method='cg'",
     {"train": TRAIN, "method": ki.Direct(max_size=10)}),
)  # fmt: skip
def test_data_and_settings_together(error, words, given, model):
    refuses(lambda m: ki.influence(m, TRAIN, **given), model, error, words)


@cases(
    ("damping in words", TypeError, "`damping` should be a number >= 0, 'auto' or 'training'",
     lambda m: ki.influence(m, TRAIN, TRAIN, damping="high")),
    ("vectors of an operator", ValueError, r"`rows` should be vectors of 15 numbers.*\(2, 14\)",
     lambda m: ki.operator(m, TRAIN).matmat(np.ones((2, 14)))),
    ("arrays for positions", TypeError, "`train_subset` should be positions",
     lambda m: ki.parameter_influence(m, [X[:2], Y[:2]], TRAIN)),
    ("more eigenvalues than there are", ValueError, "`k` should be at most the 15 parameters",
     lambda m: ki.hessian_eigenvalues(m, TRAIN, 16)),
    ("no checkpoints", TypeError, "`tracin` should be the `TracIn`.*NoneType",
     lambda m: ki.source_influence(m, TRAIN, TRAIN, None)),
    ("numbers for scores", TypeError, "`parts` should be `InfluenceScores`.*int",
     lambda m: ki.InfluenceScores.averaged([1, 2])),
    ("text for probabilities", TypeError, "`predictions` should be numbers",
     lambda m: ki.find_label_issues(m, TRAIN, predictions="a")),
    ("probabilities that are none", ValueError, "`predictions` should be probabilities.*numbers from 0 to 2",
     lambda m: ki.find_label_issues(m, TRAIN, predictions=np.tile([0.0, 1.0, 2.0], (10, 1)))),
    ("data for a path", TypeError, "`path` should be the name of a file. Received: tuple",
     lambda m: ki.write_report(m, TRAIN, TRAIN, "report.html")),
)  # fmt: skip
def test_other_arguments(error, words, given, model):
    refuses(given, model, error, words)


# ---- vectors, positions, functions, weights


@cases(
    ("short", ValueError, r"`v`.*\(15,\).*Received: v with shape \(14,\)", np.ones(14)),
    ("rows", ValueError, r"`v`.*Received: v with shape \(3, 15\)", np.ones((3, 15))),
    ("rank 3", ValueError, r"`v`.*Received: v with shape \(15, 2, 1\)", np.ones((15, 2, 1))),
    ("no column", ValueError, r"`v`.*Received: v with shape \(15, 0\)", np.ones((15, 0))),
    ("short list", ValueError, "`v`.*2 arrays.*Received: 1", [np.ones((4, 3))]),
    ("turned part", ValueError, r"`v\[0\]` should have shape \(4, 3\)",
     [np.ones((3, 4)), np.ones(3)]),
    ("NaN", ValueError, "`v` should be finite", np.full(15, np.nan)),
    ("infinity", ValueError, "`v` should be finite", np.full(15, np.inf)),
    ("text", TypeError, "`v` should be a numeric array. Received: str", "vector"),
    ("None", TypeError, "`v` should be a numeric array. Received: NoneType", None),
    ("complex", TypeError, "`v` should be a numeric array", np.ones(15, complex)),
)  # fmt: skip
@pytest.mark.parametrize("function", [ki.hvp, ki.inverse_hvp])
def test_v(error, words, given, function, model):
    refuses(lambda m: function(m, given, TRAIN), model, error, words)


POSITIONS = [
    ("words", TypeError, "`{}` should be positions in `train`, integers from 0 to 9", "ab"),
    ("beyond the end", ValueError, "`{}` should be positions.*from 0 to 9.*Received: .10", [10]),
    ("negative", ValueError, "`{}` should be positions.*Received: .-1", [-1]),
    ("empty", ValueError, "`{}` should be positions", np.array([], int)),
    ("floats", TypeError, "`{}` should be positions.*dtype float64", [0.5]),
    ("matrix", TypeError, "`{}` should be positions", [[0, 1]]),
    ("one number", TypeError, "`{}` should be positions.*int", 3),
    ("short mask", TypeError, "`{}` should be positions.*bool", np.array([True, False])),
    ("empty mask", ValueError, "`{}` should be positions", np.zeros(10, bool)),
]
TWICE = ("twice the same", ValueError, "`{}` should name each example once", [1, 1])


@cases(*POSITIONS, TWICE)
def test_groups(error, words, given, model):
    words = words.format(r"groups\[1\]")
    call = lambda m: ki.group_influence(m, TRAIN, TRAIN, [[0], given])
    refuses(call, model, error, words)


@cases(*POSITIONS, TWICE)
def test_train_subset(error, words, given, model):
    call = lambda m: ki.parameter_influence(m, given, TRAIN)
    refuses(call, model, error, words.format("train_subset"))


@cases(*POSITIONS)
def test_indices(error, words, given, model):
    words = words.format("indices")
    refuses(lambda m: ki.input_influence(m, TRAIN, TRAIN, indices=given), model, error, words)
    refuses(lambda m: ki.self_influence(m, TRAIN, indices=given), model, error, words)


@pytest.mark.parametrize("groups", [np.array([1, 2]), [], None, "ab"])
def test_no_list_of_groups(groups, model):
    call = lambda m: ki.group_influence(m, TRAIN, TRAIN, groups)
    refuses(call, model, TypeError, "`groups` should be a list of groups")


@pytest.mark.parametrize("order", [0, 3, True, None, "2"])
def test_order(order, model):
    words = f"`order` should be 1 or 2. Received: order={order!r}"
    calls = (
        lambda m: ki.group_influence(m, TRAIN, TRAIN, [[0]], order=order),
        lambda m: ki.parameter_influence(m, [0], TRAIN, order=order),
    )
    for call in calls:
        refuses(call, model, ValueError, words)


@cases(
    ("text", TypeError, "`target` should be a function of .x, y, y_pred.", "margin"),
    ("number", TypeError, "`target` should be a function of", 3),
    ("a scalar", ValueError, "`target` should return floats", lambda x, y, p: p[0, 0]),
    ("a matrix", ValueError, "`target` should return floats", lambda x, y, p: p),
    ("integers", ValueError, "`target` should return floats.*int", lambda x, y, p: y),
    ("None", ValueError, "`target` failed on the test data", lambda x, y, p: None),
    ("two arguments", ValueError, "`target` failed.*positional", lambda y, p: p[:, 0]),
    ("raises", ValueError, "`target` failed on the test data", lambda x, y, p: p["class"]),
    (
        "NumPy",
        ValueError,
        "`target` should be written with TensorFlow",
        lambda x, y, p: np.array(p)[:, 0],
    ),
)
def test_target(error, words, given, model):
    refused_by_all(error, words, given, model)


_random = np.random.default_rng(0)


@cases(
    ("a constant", ValueError, "`target` should depend", lambda x, y, p: tf.zeros_like(p[:, 0])),
    (
        "a comparison",
        ValueError,
        "`target` should depend",
        lambda x, y, p: tf.cast(p[:, 0] > 0.3, p.dtype),
    ),
    (
        "an argmax",
        ValueError,
        "`target` should depend",
        lambda x, y, p: tf.cast(tf.argmax(p, 1), p.dtype),
    ),
    (
        "a mean",
        ValueError,
        "beside other examples.*WholeSet",
        lambda x, y, p: p[:, 0] - tf.reduce_mean(p[:, 0]),
    ),
    ("chance", ValueError, "other values each time", lambda x, y, p: p[:, 0] * _random.uniform()),
)
def test_a_target_that_says_nothing_of_an_example(error, words, given, model):
    refused_by_all(error, words, given, model)


def refused_by_all(error, words, given, model):
    calls = (
        lambda m: ki.influence(m, TRAIN, TRAIN, target=given),
        lambda m: ki.group_influence(m, TRAIN, TRAIN, [[0]], target=given),
        lambda m: ki.input_influence(m, TRAIN, TRAIN, target=given),
    )
    for call in calls:
        refuses(call, model, error, words)


@cases(
    ("text", TypeError, "`variables` should be a layer.*Received: str", "dense"),
    ("number", TypeError, "`variables` should be a layer.*Received: int", [1]),
    ("none chosen", ValueError, "`variables` selects no trainable", lambda v: False),
    ("empty list", ValueError, "`variables` selects no trainable", []),
    ("another model", ValueError, "`variables` has weights that are not the model's", OTHER),
)
def test_variables(error, words, given, model):
    refuses(lambda m: ki.hvp(m, np.ones(15), TRAIN, variables=given), model, error, words)


def test_inputs_without_numbers():
    inputs = keras.Input((1,), dtype="int32")
    flat = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(flat))
    model.compile("sgd", "sparse_categorical_crossentropy")
    train = Y[:, None].astype("int32"), Y
    call = lambda m: ki.input_influence(m, train, train)
    refuses(call, model, ValueError, "`train` has no floating input")


@cases(
    ("another shape", ValueError, r"`change` should be a list.*\(4, 3\)", [np.ones(3)]),
    ("NaN", ValueError, "`change` should be finite", [np.full((4, 3), np.nan), np.ones(3)]),
    ("text", ValueError, "`change` should be a list", "more"),
)
def test_change(error, words, given, model):
    refuses(lambda m: ki.with_change(m, given), model, error, words)


def test_with_change_of_no_model():
    with pytest.raises(TypeError, match="`model` should be a keras.Model. Received: int"):
        ki.with_change(3, [np.ones(3)])


# ---- models


def uncompiled():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs))


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    return model


@keras.saving.register_keras_serializable("test_bad_input")
class HalfBuilt(keras.Model):
    """Its first part has weights, its last is made when it is first called."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        self.last = keras.layers.Dense(3, "softmax")

    def call(self, x):
        return self.last(self.first(x))


def half_built():
    model = HalfBuilt()
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@keras.saving.register_keras_serializable("test_bad_input")
class Dropped(keras.Model):
    """Chance has a state of its own, which is no weight."""

    def __init__(self, **options):
        super().__init__(**options)
        self.chance, self.last = keras.layers.Dropout(0.5), keras.layers.Dense(3)

    def call(self, x):
        return self.last(self.chance(x))


def dropped():
    model = Dropped()
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


@cases(
    ("uncompiled", ValueError, "`model` should be compiled: its loss defines", uncompiled),
    ("unbuilt", ValueError, "`model` should be built", unbuilt),
    ("half built", ValueError, "`model` should be built", half_built),
    ("unbuilt with dropout", ValueError, "`model` should be built", dropped),
    ("frozen", ValueError, "`model` should have trainable weights", frozen),
    ("broken", ValueError, "`model` has NaN or infinite values in dense.*kernel", broken),
    ("lossless", ValueError, "`model` should be compiled with a loss", lossless),
    ("loss of a batch", RefusedLoss, "not a mean or sum", batch_loss),
    ("mixing loss", RefusedLoss, "not a mean or sum over examples", mixing_loss),
    ("text", TypeError, "`model` should be a keras.Model. Received: str", lambda: "model"),
)
def test_models(error, words, given):
    model = given()
    with pytest.raises(error, match=words) as caught:
        ki.influence(model, (X, Y[:, None]), (X, Y[:, None]))
    assert caught.type is error


@pytest.mark.parametrize("row", [34, 33])  # The latter is one of the few that are looked at.
def test_a_row_that_is_all_padding_is_named(row, rng):
    """A mean over a mask that leaves nothing is 0/0; labels have no part in it."""
    tokens = rng.integers(1, 8, (40, 5))
    tokens[row] = 0
    embedding = keras.layers.Embedding(8, 4, mask_zero=True)
    layers = [embedding, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train, test = (tokens, np.arange(40) % 3), (tokens[:2], np.arange(2))
    for curvature in ("gauss_newton", "hessian"):
        with pytest.raises(ValueError, match=f"example {row} of `train`.*all padding"):
            ki.influence(model, test, train, curvature=curvature)


def test_an_output_that_the_loss_cannot_take_is_named(rng):
    """Poisson's loss of an output below zero is NaN: it is not the output that is wrong."""
    x, y = rng.uniform(1, 2, (40, 1)), np.ones((40, 1))
    x[33] = -1
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.ones((1, 1))])
    model.compile("sgd", "poisson")
    for batch_size in (1, 7, None):
        with pytest.raises(ValueError, match="The loss of example 33 of `train`.*Is its label"):
            ki.influence(model, (x[:2], y[:2]), (x, y), batch_size=batch_size)


def test_an_array_is_no_choice(model):
    many = np.ones(2)
    group = lambda m: ki.group_influence(m, TRAIN, TRAIN, [[0]], order=many)
    refuses(group, model, ValueError, "`order` should be 1 or 2")
    issues = lambda m: ki.find_label_issues(m, TRAIN, by=many)
    refuses(issues, model, ValueError, "`by` should be one of")
    which = lambda m: ki.hessian_eigenvalues(m, TRAIN, which=many)
    refuses(which, model, ValueError, "`which` should be one of")


@pytest.mark.parametrize("folder", [3, ["a"], np.ones(2)])
def test_no_folder(folder, model):
    calls = (
        lambda m: ki.TracIn(folder=folder),
        lambda m: ki.Replay(*TRAIN, batch_size=5, folder=folder),
        lambda m: ki.InfluenceCallback(TRAIN, TRAIN, folder=folder),
        lambda m: ki.evaluation.subset_outputs(m, TRAIN, TRAIN, subsets=2, folder=folder),
    )
    for call in calls:
        refuses(call, model, TypeError, "`folder` should be the path of a folder")


@pytest.mark.parametrize("tracin", ["tracin", [1], 0])
def test_no_tracin(tracin, model):
    words = "`tracin` should be the `TracIn` that was among the callbacks"
    trak = lambda m: ki.trak_influence(m, TRAIN, TRAIN, dim=2, tracin=tracin)
    refuses(trak, model, TypeError, words)
    source = lambda m: ki.source_influence(m, TRAIN, TRAIN, tracin)
    refuses(source, model, TypeError, words)
