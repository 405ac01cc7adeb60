"""Every way to make a model gives the same numbers, and Keras keeps working as it does."""

import functools
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Net(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, "tanh")
        self.out = layers.Dense(3, "softmax")

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return {"units": self.units}


@keras.saving.register_keras_serializable("tests")
class InfluenceNet(ki.InfluenceModel):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, "tanh")
        self.out = layers.Dense(3, "softmax")

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return {"units": self.units}


@keras.saving.register_keras_serializable("tests")
class SubNet(InfluenceNet):
    def call(self, x):
        return super().call(x)


@keras.saving.register_keras_serializable("tests")
class MixedNet(ki.InfluenceMixin, Net):
    pass


@keras.saving.register_keras_serializable("tests")
class StepNet(ki.InfluenceModel):
    """The Keras pattern of a Functional graph with a method of one's own."""

    def train_step(self, data):
        return super().train_step(data) | {"mine": 1.0}


@keras.saving.register_keras_serializable("tests")
class InnerGraph(ki.InfluenceModel):
    """A subclass that makes its own graph."""

    def __init__(self, units=4):
        inputs, outputs = graph(units)
        super().__init__(inputs=inputs, outputs=outputs)
        self.units = units

    def get_config(self):
        return {"units": self.units}


def graph(units=4):
    inputs = keras.Input((5,))
    hidden = layers.Dense(units, "tanh")(inputs)
    return inputs, layers.Dense(3, "softmax")(hidden)


def sequential():
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dense(3, "softmax")]
    )


MODELS = {
    "Functional": lambda: ki.InfluenceModel(*graph()),
    "Functional by keyword": lambda: ki.InfluenceModel(
        **dict(zip(("inputs", "outputs"), graph())), name="named"
    ),
    "subclass": InfluenceNet,
    "subclass of a subclass": SubNet,
    "mixin": MixedNet,
    "Functional subclass": lambda: StepNet(*graph()),
    "graph made inside": InnerGraph,
    "from Functional": lambda: ki.InfluenceModel.from_model(keras.Model(*graph())),
    "from Sequential": lambda: ki.InfluenceModel.from_model(sequential()),
    "from subclass": lambda: ki.InfluenceModel.from_model(Net()),
}


@pytest.fixture
def data(rng):
    return _data(rng)


def _data(rng):
    return rng.normal(size=(20, 5)), rng.integers(0, 3, 20)


def ready(name, data):
    model = MODELS[name]()
    model(data[0][:1])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    truth.set_flat(model, _weights())
    return model


def _weights():
    return np.random.default_rng(3).normal(size=39)


@functools.cache
def _exact():
    """Scores of the first three examples by Keras alone; all constructions have the same weights."""
    model, (x, y) = keras.Model(*graph()), _data(np.random.default_rng(0))
    model.compile("sgd", "sparse_categorical_crossentropy")
    truth.set_flat(model, _weights())
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(20)])
    hessian = truth.finite_difference_hessian(model, x, y, 1e-3)
    return g[:3] @ np.linalg.solve(hessian + 3 * np.eye(39), g.T) / 20


@pytest.mark.slow_cases(
    "graph made inside",
    "from subclass",
    "subclass of a subclass",
    "Functional subclass",
    "Functional by keyword",
    "from Sequential",
)
@pytest.mark.parametrize("name", MODELS)
def test_every_construction_gives_the_same_scores_also_after_a_file(name, data, tmp_path):
    model, test = ready(name, data), (data[0][:3], data[1][:3])
    options = {"damping": 3.0, "curvature": "hessian"}
    scores = model.influence(test, data, **options)
    assert truth.relative_error(scores.values, _exact()) < 1e-8
    assert isinstance(model, ki.InfluenceMixin)
    assert model.fit(*data, verbose=0).history["accuracy"]
    expected = model.influence(test, data, **options).values
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, ki.InfluenceMixin)
    assert truth.relative_error(loaded.influence(test, data, **options).values, expected) < 1e-10
    assert loaded.optimizer.iterations.numpy() == model.optimizer.iterations.numpy() > 0
    loaded.fit(*data, verbose=0)


def test_a_saved_model_loads_in_a_fresh_process(data, tmp_path):
    code = "import keras, keras_influence\n"
    names = ("Functional", "from Functional", "from Sequential")
    for name in names:
        path = tmp_path / f"{name}.keras"
        ready(name, data).save(path)
        code += (
            f"m = keras.models.load_model({str(path)!r})\n"
            "print(isinstance(m, keras_influence.InfluenceModel), m.count_params())\n"
        )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["True", "39"] * len(names), result.stderr


@pytest.mark.parametrize("name", ["Functional", "from Sequential"])
def test_an_old_file_needs_the_name(name, data, tmp_path):
    model = ready(name, data)
    model.save(tmp_path / "model.h5")
    known = {"InfluenceModel": ki.InfluenceModel}
    loaded = keras.models.load_model(tmp_path / "model.h5", custom_objects=known)
    assert isinstance(loaded, ki.InfluenceModel)
    assert truth.relative_error(loaded(data[0]).numpy(), model(data[0]).numpy()) < 1e-6


def test_a_pickled_model_loads_where_nothing_was_imported(data, tmp_path):
    names = ("Functional", "from Functional", "from Sequential")
    models = [ready(name, data) for name in names]
    file = tmp_path / "models.pickle"
    file.write_bytes(pickle.dumps(models))
    code = (
        f"import pickle; models = pickle.load(open({str(file)!r}, 'rb'))\n"
        "import keras_influence, numpy\n"
        "for m in models:\n"
        "    weights = numpy.concatenate([w.ravel() for w in m.get_weights()])\n"
        "    print(isinstance(m, keras_influence.InfluenceModel), float(weights @ weights))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["True"] * len(names), result.stderr
    assert float(lines[0][1]) == pytest.approx(float(_weights() @ _weights()), rel=1e-6)


def test_from_model_shares_weights_compile_state_and_class(data):
    original = Net()
    original(data[0][:1])
    original.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model = ki.InfluenceModel.from_model(original)
    assert isinstance(model, Net)
    assert isinstance(model, ki.InfluenceModel)
    assert model.optimizer is original.optimizer
    before = truth.get_flat(original)
    model.fit(*data, verbose=0)
    assert not np.allclose(truth.get_flat(original), before)
    assert (truth.get_flat(original) == truth.get_flat(model)).all()
    assert type(original) is Net


def test_a_train_step_is_said_to_be_of_the_class_that_has_it(data):
    class Stepping(Net):
        def train_step(self, inputs):
            return super().train_step(inputs)

    original = Stepping()
    original(data[0][:1])
    original.compile("adam", "sparse_categorical_crossentropy")
    model = ki.InfluenceModel.from_model(original)
    with pytest.warns(ki.ObjectiveWarning, match="^Stepping has a `train_step` of its own"):
        model.hvp(np.ones(model.count_params()), data)


def test_from_model_of_an_influence_model_is_itself(data):
    model = ready("Functional", data)
    assert ki.InfluenceModel.from_model(model) is model


def test_from_model_takes_a_loaded_model(data, tmp_path):
    original = sequential()
    original.compile("adam", "sparse_categorical_crossentropy")
    original.save(tmp_path / "plain.keras")
    loaded = ki.InfluenceModel.from_model(keras.models.load_model(tmp_path / "plain.keras"))
    plain = ki.influence(original, data, data, damping=3.0).values
    assert truth.relative_error(loaded.influence(data, data, damping=3.0).values, plain) < 1e-12


@pytest.mark.slow_cases("Functional", "from Functional", "from Sequential")
@pytest.mark.parametrize(
    "name", ["Functional", "subclass", "from Functional", "from Sequential", "from subclass"]
)
def test_clone_model(name, data):
    model = ready(name, data)
    clone = keras.models.clone_model(model)
    clone(data[0][:1])
    clone.set_weights(model.get_weights())
    assert truth.relative_error(clone(data[0]), model(data[0]).numpy()) < 1e-12
    clone.compile("sgd", "sparse_categorical_crossentropy")
    expected = model.influence(data, data, damping=3.0).values
    found = ki.influence(clone, data, data, damping=3.0).values
    assert truth.relative_error(found, expected) < 1e-10


def test_from_model_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="`model` should be a keras.Model"):
        ki.InfluenceModel.from_model("net")


def snapshot(model):
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [v.numpy().copy() for v in variables]


class Stateful(keras.Model):
    """Everything that could change: batch statistics, dropout seeds, a tracker in compute_loss."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.out = layers.Dense(3, "softmax")
        self.tracker = keras.metrics.Mean("tracked")

    def call(self, x, training=False):
        return self.out(self.drop(self.norm(x, training=training), training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        self.tracker.update_state(loss)
        return loss


@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(fails, data, monkeypatch):
    model = ki.InfluenceModel.from_model(Stateful())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*data, verbose=0)
    flags = [layer.trainable for layer in model.layers]
    before = snapshot(model)
    numpy_state = np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(ki.NegativeCurvatureError):
            # -λI: no positive definite system.
            monkeypatch.setattr(
                "keras_influence.linalg.operators.Damped.matmat", lambda self, c: -c
            )
            model.influence(data, data, curvature="hessian", method="cg")
    else:
        model.influence(data, data, damping=1.0)
        model.self_influence(data, damping=1.0, method="cg")
        model.hvp(truth.get_flat(model), data)
    assert all((a == b).all() for a, b in zip(before, snapshot(model), strict=True))
    assert flags == [layer.trainable for layer in model.layers]
    assert (numpy_state == np.random.get_state()[1]).all()


def test_training_is_the_same_with_and_without_influence_between_epochs(data):
    def train(ask):
        keras.utils.set_random_seed(1)
        model = Stateful()
        model.compile("adam", "sparse_categorical_crossentropy")
        for _ in range(3):
            model.fit(*data, verbose=0)
            if ask:
                ki.influence(model, data, data, damping=1.0)
        return truth.get_flat(model)

    assert (train(True) == train(False)).all()


def test_compiling_anew_is_noticed(data):
    model = ready("Functional", data)
    first = model.influence(data, data, damping=3.0).values
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(), loss_weights=[2.0])
    doubled = model.influence(data, data, damping=6.0).values
    assert truth.relative_error(doubled, 2 * first) < 1e-8


@pytest.mark.parametrize(("before", "after"), [(0.1, 1.0), (1e-6, 1e-5)])
def test_a_regulariser_that_changes_is_noticed(before, after, data):
    """However small it is beside the losses."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, "softmax")])
    model.layers[0].kernel_regularizer = regulariser = keras.regularizers.L2(before)
    model.layers[0].kernel.regularizer = regulariser
    model.compile("sgd", "sparse_categorical_crossentropy")
    v = np.ones(18)
    first = ki.hvp(model, v, data)
    regulariser.l2 = after
    change = np.repeat([2 * (after - before), 0], [15, 3])
    assert truth.relative_error(ki.hvp(model, v, data) - first, change) < 1e-6


class Adding(layers.Layer):
    """Adds as much of its input's square as an attribute says."""

    share = 0.1

    def call(self, x):
        self.add_loss(self.share * keras.ops.mean(keras.ops.sum(x**2, 1)))
        return x


def test_what_a_layer_adds_is_noticed_where_it_changes(data):
    adding = Adding()
    net = [keras.Input((5,)), layers.Dense(3), adding, layers.Activation("softmax")]
    model = keras.Sequential(net)
    model.compile("sgd", "sparse_categorical_crossentropy")
    v = np.arange(18.0)
    first = ki.hvp(model, v, data)
    adding.share = 0.2
    x = np.hstack([data[0], np.ones((len(data[0]), 1))])
    change = 0.1 * 2 * x.T @ (x @ v.reshape(6, 3)) / len(x)
    assert truth.relative_error(ki.hvp(model, v, data) - first, change.ravel()) < 1e-8


def test_freezing_a_layer_is_noticed(data):
    model = ready("Functional", data)
    assert model.hvp(np.ones(39), data).shape == (39,)
    model.layers[1].trainable = False
    assert model.hvp(np.ones(15), data).shape == (15,)
