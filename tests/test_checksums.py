"""Fingerprints that see every change and nothing else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import checksums
from tests import truth
from tests.processes import printed

# ---- data

TEXTS = np.array([["a" * 40], ["bb"], ["c"], ["a"], ["bc"]])
DATA = {
    "numbers": lambda: tf.constant(np.arange(10.0).reshape(5, 2)),
    "texts": lambda: tf.constant(TEXTS.tolist()),
    "ragged": lambda: tf.ragged.constant([[1, 2], [], [3], [4, 5, 6], [7]]),
    "sparse": lambda: tf.sparse.from_dense([[0, 1], [2, 0], [0, 0], [3, 4], [0, 5]]),
}
CHANGED = {
    "numbers": tf.constant(np.arange(10.0).reshape(5, 2) + np.eye(5, 2)),
    "texts": tf.constant([["a" * 40], ["bb"], ["c"], ["ab"], ["c"]]),
    "ragged": tf.ragged.constant([[1], [2], [3], [4, 5, 6], [7]]),
    "sparse": tf.sparse.from_dense([[1, 0], [2, 0], [0, 0], [3, 4], [0, 5]]),
}


def batched(tensor, size):
    return tf.data.Dataset.from_tensor_slices((tensor,)).batch(size)


@pytest.mark.parametrize("kind", DATA)
def test_data_are_known_whatever_the_batches_are(kind):
    one = checksums.fingerprint_of_batches(batched(DATA[kind](), 5))
    for size in (1, 2, 3):
        assert checksums.fingerprint_of_batches(batched(DATA[kind](), size)) == one
    assert checksums.fingerprint_of_batches(batched(CHANGED[kind], 2)) != one


@pytest.mark.parametrize("kind", DATA)
def test_quick_fingerprints_repeat_and_see_a_change(kind):
    # Made twice: equal strings that lie elsewhere in memory are equal.
    (first,), (again,), (other,) = (
        [checksums.quick_fingerprint(batch) for batch in batched(tensor, 5)]
        for tensor in (DATA[kind](), DATA[kind](), CHANGED[kind])
    )
    assert first == again != other


def test_an_empty_batch_has_a_fingerprint():
    empty = (np.zeros((0, 3)), np.zeros(0, object))
    assert checksums.quick_fingerprint(empty) == checksums.quick_fingerprint(empty)
    assert checksums.fingerprint_of_batches([empty])


def test_dtypes_and_shapes_are_part_of_the_data():
    zeros = [np.zeros((4, 2)), np.zeros((2, 4)), np.zeros((4, 2), np.int64)]
    assert len({checksums.fingerprint_of_batches([(z,)]) for z in zeros}) == 3
    assert len({checksums.fingerprint_of_weights([z]) for z in zeros}) == 3


def test_weights_are_known_by_value(rng):
    model = truth.ridge_model(3)
    before = checksums.fingerprint_of_weights(model.weights)
    assert before == checksums.fingerprint_of_weights([v.numpy() for v in model.weights])
    theta = truth.get_flat(model)
    theta[1] = np.nextafter(theta[1], 9)
    truth.set_flat(model, theta)
    assert checksums.fingerprint_of_weights(model.weights) != before


# ---- models


def test_a_model_is_known_by_architecture_and_compile_state():
    first, again = truth.softmax_model(3, 2), truth.softmax_model(3, 2)
    assert [v.path for v in first.weights] != [v.path for v in again.weights]
    known = checksums.fingerprint_of_model(first)
    assert checksums.fingerprint_of_model(again) == known
    again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ignore_class=0))
    assert checksums.fingerprint_of_model(again) != known
    assert checksums.fingerprint_of_model(truth.softmax_model(3, 2, truth.L2)) != known


# ---- functions


def power(exponent, base=1.0):
    return lambda x: (base * x) ** exponent


def scaled(x, factor=2.0):
    return factor * x


class Called:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x


def test_functions_are_known_by_what_they_do():
    print_of = checksums.fingerprint_of_function
    assert print_of(None) is None
    known = [
        scaled,
        power(2),
        power(3),
        power(2, 2.0),
        functools.partial(scaled, factor=3.0),
        functools.partial(scaled, factor=4.0),
        Called(),
        np.sum,
        len,
    ]
    assert len({print_of(f) for f in known}) == len(known)
    assert print_of(power(2)) == print_of(power(2))
    called = Called()
    before = print_of(called)
    called(1)
    assert print_of(called) == before


def test_a_function_inside_another_counts():
    def outer(inner):
        return lambda x: inner(x)

    print_of = checksums.fingerprint_of_function
    assert print_of(outer(power(2))) == print_of(outer(power(2)))
    assert print_of(outer(power(2))) != print_of(outer(power(3)))


EPOCHS, TABLE, SETTINGS, again = 1, np.arange(3.0), {"rate": 0.1}, None


def reads_globals(x):
    """A value two functions away, an array in a generator, and a way back to itself."""
    return [helper(x) + TABLE[i] for i in range(3)]


def helper(x):
    return reads_globals(x) if x > EPOCHS else SETTINGS["rate"] * np.sum(x)


def counts(x):
    global again
    again = SETTINGS["last"] = x
    return again


class Fitted:
    def __init__(self, epochs):
        self.epochs, self.calls, self.log = epochs, 0, []

    def __call__(self, x):
        self.calls += 1
        return self.more(x)

    def more(self, x):
        return self.epochs * EPOCHS * x


def needs_keyword(factor):
    def function(x, *, factor=factor):
        return factor * x

    return function


@pytest.mark.parametrize(
    "name, value",
    [("EPOCHS", 2), ("TABLE", np.ones(3)), ("helper", scaled), ("SETTINGS", {"rate": 0.2})],
)
def test_globals_count_that_a_function_reads(monkeypatch, name, value):
    print_of = checksums.fingerprint_of_function
    functions = [reads_globals, lambda x: reads_globals(x), functools.partial(reads_globals, 2)]
    before = [print_of(function) for function in functions]
    assert before == [print_of(function) for function in functions]
    monkeypatch.setitem(globals(), name, value)
    assert all(print_of(f) != known for f, known in zip(functions, before))


def test_what_a_function_assigns_is_no_part_of_it():
    before = checksums.fingerprint_of_function(counts)
    counts(3)
    assert checksums.fingerprint_of_function(counts) == before
    assert SETTINGS.pop("last") == again


def test_attributes_count_that_are_not_assigned_to(monkeypatch):
    print_of = checksums.fingerprint_of_function
    fitted = Fitted(1)
    before = print_of(fitted), print_of(fitted.more)
    fitted(2)
    assert (print_of(fitted), print_of(fitted.more)) == before
    assert print_of(Fitted(2)) != before[0]
    assert print_of(Fitted(2).more) != before[1]
    monkeypatch.setitem(globals(), "EPOCHS", 5)
    assert print_of(fitted) != before[0]
    assert print_of(needs_keyword(1.0)) != print_of(needs_keyword(2.0))


def test_a_function_is_the_same_in_each_process():
    """Where strings have other hashes and objects lie elsewhere."""
    code = (
        "from tests import test_checksums as t; "
        "print([t.checksums.fingerprint_of_function(f) for f in (t.reads_globals, t.Fitted(1))])"
    )
    known = [checksums.fingerprint_of_function(f) for f in (reads_globals, Fitted(1))]
    assert printed(code) == str(known)


def test_functions_without_source_differ_by_what_they_do():
    """As typed at a prompt."""

    def typed(text):
        names = {}
        exec(text, names)
        return checksums.fingerprint_of_function(names["f"])

    assert typed("f = lambda y: y[:, 0]") == typed("f = lambda y: y[:, 0]")
    assert typed("f = lambda y: y[:, 0]") != typed("f = lambda y: y[:, 1]")
    assert typed("f = lambda y: [v + 1 for v in y]") != typed("f = lambda y: [v + 2 for v in y]")
