"""What functions and layers read: every change of it is seen, and nothing else."""

import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import _keras, checksums
from keras_influence.described import Values, changed
from keras_influence.described.texts import text_of
from keras_influence.engine.loss.looks import called
from tests.processes import printed
from tests.zoo import ZOO

layers = keras.layers


# ---- functions and objects


@pytest.mark.parametrize("changed_at", [0, 40_000, 99_999])
def test_every_number_of_a_large_array_is_in_its_text(changed_at, rng):
    """A checksum of all of them as float64, whichever piece they are in, and whether all are whole."""
    array = rng.integers(0, 9, 100_000).astype(np.float32)
    shape = array.shape
    assert text_of(array) == f"whole {shape} {zlib.crc32(array.astype(np.float64).tobytes())}"
    array[changed_at] += 0.5
    assert text_of(array) == f"rounded {shape} {zlib.crc32(array.astype(np.float64).tobytes())}"


class Holder:
    """Of its attributes `factor` is read by what asks it, `seen` and `note` are not."""

    factor = 1.0

    def __init__(self):
        self.inner, self.seen, self.note = {"limits": [1.0, 2.0]}, 0, "a"

    def scaled(self, x):
        return self.inner["limits"][1] * x

    def count(self):
        self.seen += 1


class Added:
    def __init__(self):
        self.number, self.offset = 1.0, 1.0

    def __call__(self, x):
        return x + self.number


HOLDER, NUMBERS, TEXTS, TABLE = Holder(), [1.0], {"a"}, np.arange(40.0)
ADDED, GIVEN = Added(), Added()


def reads(y, y_pred, power=2.0):
    some = HOLDER.factor * HOLDER.scaled(y_pred) ** power + NUMBERS[0] + len(TEXTS)
    return some + ADDED(helper(y, GIVEN))


def helper(x, given):
    return x + TABLE[3] * given.number + offset()


def offset():
    return GIVEN.offset


def values_of(function):
    found = Values()
    found.read(function, "f")
    return found.found


def _replaced(name, value):
    return lambda patch: patch.setitem(globals(), name, value)


SEEN = {
    "an attribute": lambda patch: patch.setattr(HOLDER, "factor", 2.0),
    "a class's attribute": lambda patch: patch.setattr(Holder, "factor", 2.0),
    "a list in a dict in an object": lambda patch: patch.setitem(HOLDER.inner, "limits", [1, 3]),
    "a list": _replaced("NUMBERS", [2.0]),
    "a set": _replaced("TEXTS", {"a", "b"}),
    "an array two functions away": _replaced("TABLE", np.arange(40.0) ** 2),
    "an object that is called": lambda patch: patch.setattr(ADDED, "number", 2.0),
    "one that is given to another function": lambda patch: patch.setattr(GIVEN, "number", 2.0),
    "what another function reads of it": lambda patch: patch.setattr(GIVEN, "offset", 2.0),
    "another function": _replaced("helper", lambda x, given: x),
    "a default": lambda patch: patch.setattr(reads, "__defaults__", (3.0,)),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_function_is_asked_for_all_that_it_reads(name, monkeypatch):
    before = values_of(reads)
    assert values_of(reads) == before
    SEEN[name](monkeypatch)
    assert changed(before, values_of(reads))


UNSEEN = {
    "what nothing reads": lambda patch: patch.setattr(HOLDER, "note", "b"),
    "what other methods write": lambda patch: HOLDER.count(),
    "a new attribute": lambda patch: patch.setattr(HOLDER, "more", 1.0, raising=False),
    "a list for a tuple": _replaced("NUMBERS", (1,)),
    "an array for a list": _replaced("NUMBERS", np.ones(1, np.float32)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_it_does_not_read_is_no_part_of_it(name, monkeypatch):
    before = values_of(reads)
    UNSEEN[name](monkeypatch)
    assert not changed(before, values_of(reads))


class Odd:
    """Whatever is done with it fails."""

    def _fails(self, *args):
        raise RuntimeError

    __eq__ = __repr__ = __getattr__ = __hash__ = __iter__ = __len__ = _fails
    value = property(_fails)


def test_odd_objects_and_cycles_are_passed_over():
    holder, odd = Holder(), Odd()
    holder.inner["limits"] = [odd, holder, {1: odd}, lambda: odd]
    odd.__dict__["factor"], odd.__dict__["inner"] = holder, tf.Variable(1.0)
    found = values_of(lambda x: holder.scaled(x) * holder.factor * odd.factor * odd.value)
    assert found["f.holder.factor"] == ["1"]


# ---- models


class Cut(layers.Layer):
    """A threshold, a flag of its class, a counter and the tensor that it saw last."""

    stop = False

    def __init__(self, limit=1.0, **kwargs):
        super().__init__(**kwargs)
        self._limit, self.calls, self.sizes, self.last = limit, 0, [], None

    def call(self, x):
        self.calls += 1
        self.sizes.append(str(x.shape[0]))
        self.last = keras.ops.minimum(x, self._limit)
        return keras.ops.stop_gradient(self.last) if self.stop else self.last

    def get_config(self):
        return {**super().get_config(), "limit": self._limit}


class Scaled(keras.losses.Loss):
    def __init__(self, factor=1.0, name=None, reduction="sum_over_batch_size"):
        super().__init__(name=name, reduction=reduction)
        self.factor = factor

    def call(self, y, y_pred):
        return self.factor * keras.ops.mean(keras.ops.square(y - y_pred), -1)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def cut_model(vocabulary=("a", "b")):
    normal = layers.Normalization()
    normal.adapt(np.arange(12.0).reshape(4, 3))
    words = layers.StringLookup()
    words.adapt(np.array(vocabulary))
    x, text = keras.Input((3,)), keras.Input((1,), dtype="string")
    hidden = layers.Lambda(lambda t: 2 * t)(Cut(name="cut")(normal(x)))
    told = layers.Flatten()(layers.Embedding(5, 2)(words(text)))
    hidden = layers.Concatenate()([layers.Dense(4, "relu", name="hidden")(hidden), told])
    model = keras.Model([x, text], layers.Dense(2)(layers.Dropout(0.5, name="drop")(hidden)))
    model.compile("sgd", Scaled())
    return model


def cut_data(n=6):
    return (tf.ones((n, 3)), tf.constant([["a"]] * n)), tf.ones((n, 2))


CHANGES = {
    "Cut._limit": lambda m: setattr(m.get_layer("cut"), "_limit", 2.0),
    "Cut.stop": lambda m: setattr(m.get_layer("cut"), "stop", True),
    "Dense.activation": lambda m: setattr(
        m.get_layer("hidden"), "activation", keras.activations.tanh
    ),
    "Dropout.rate": lambda m: setattr(m.get_layer("drop"), "rate", 0.25),
    "Scaled.factor": lambda m: setattr(m.loss, "factor", 2.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_layer_or_a_loss_holds_is_seen(name):
    model = cut_model()
    before = _keras.values_of(model)
    CHANGES[name](model)
    assert changed(before, _keras.values_of(model)) == name


def test_what_calls_of_a_model_change_is_left_out():
    model = cut_model()
    before = _keras.values_of(model)
    with called(model, cut_data()):
        pass
    assert changed(before, _keras.values_of(model)) == "Cut.calls"
    _keras.leave_out_changing(model, before)
    before = _keras.values_of(model)
    model.evaluate(*cut_data(4), verbose=0)
    model.fit(*cut_data(3), verbose=0)
    model.note = "of a user's"
    assert _keras.values_of(model) == before
    model.get_layer("cut")._limit = 2.0
    assert changed(before, _keras.values_of(model)) == "Cut._limit"


def written(model):
    return checksums.fingerprints_of_values(_keras.values_of(model))


def differing(model, other):
    before, now = written(model), written(other)
    return [name for name in before if before[name] != now.get(name, before[name])]


def test_a_model_is_the_same_after_a_file(tmp_path):
    model = cut_model()
    model.fit(*cut_data(), verbose=0)
    model.save(tmp_path / "model.keras")
    known = {"Cut": Cut, "Scaled": Scaled}
    loaded = keras.models.load_model(tmp_path / "model.keras", known, safe_mode=False)
    assert not set(differing(model, loaded)) - {"Cut.calls (1)", "Cut.sizes (1)"}
    assert differing(model, cut_model(("a", "b", "c"))) == differing(model, loaded)
    model.loss.factor = 2.0
    assert "Scaled.factor (1)" in differing(model, loaded)


def _lora():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(2)])
    model.layers[0].enable_lora(2)
    return model


def _quantised():
    model = _lora()
    model.layers[1].quantize("int8")
    return model


def _mixed():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(2)])
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.each_case
@pytest.mark.parametrize("make", [_lora, _quantised, _mixed], ids=lambda f: f.__name__)
def test_models_of_special_kinds_stay_what_they_are(make):
    model = make()
    model.compile("sgd", "mse")
    before = _keras.values_of(model)
    with called(model, (tf.ones((4, 3)), tf.ones((4, 2)))):
        assert _keras.values_of(model) == before
    assert _keras.values_of(model) == before
    assert not differing(model, make())


@pytest.mark.parametrize("name", ZOO)
def test_a_call_changes_nothing_and_a_copy_holds_the_same(name, rng):
    make, data = ZOO[name]
    model = make()
    before = _keras.values_of(model)
    with called(model, tf.nest.map_structure(tf.convert_to_tensor, data(rng))):
        pass
    assert before and _keras.values_of(model) == before
    assert not differing(model, make())
    if isinstance(model, _keras.Functional):
        assert not differing(model, keras.models.clone_model(model))


def test_it_is_the_same_in_each_process():
    code = (
        "from tests import test_described as t; t.keras.config.set_dtype_policy('float64'); "
        "print(t.written(t.cut_model()), t.checksums.fingerprints_of_values(t.values_of(t.reads)))"
    )
    known = written(cut_model()), checksums.fingerprints_of_values(values_of(reads))
    assert printed(code) == f"{known[0]} {known[1]}"
