"""Fingerprints of functions: what they do and read, and nothing that changes as they run."""

import functools
import importlib

import numpy as np
import pytest

from keras_influence.checksums import fingerprint_of_function as print_of
from tests.processes import printed


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
    functions = [reads_globals, lambda x: reads_globals(x), functools.partial(reads_globals, 2)]
    before = [print_of(function) for function in functions]
    assert before == [print_of(function) for function in functions]
    monkeypatch.setitem(globals(), name, value)
    assert all(print_of(f) != known for f, known in zip(functions, before))


def test_what_a_function_assigns_is_no_part_of_it():
    before = print_of(counts)
    counts(3)
    assert print_of(counts) == before
    assert SETTINGS.pop("last") == again


def test_attributes_count_that_are_not_assigned_to(monkeypatch):
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
        "from tests import test_fingerprints as t; "
        "print([t.print_of(f) for f in (t.reads_globals, t.Fitted(1))])"
    )
    known = [print_of(f) for f in (reads_globals, Fitted(1))]
    assert printed(code) == str(known)


def test_functions_without_source_differ_by_what_they_do():
    """As typed at a prompt."""

    def typed(text):
        names = {}
        exec(text, names)
        return print_of(names["f"])

    assert typed("f = lambda y: y[:, 0]") == typed("f = lambda y: y[:, 0]")
    assert typed("f = lambda y: y[:, 0]") != typed("f = lambda y: y[:, 1]")
    assert typed("f = lambda y: [v + 1 for v in y]") != typed("f = lambda y: [v + 2 for v in y]")


def test_a_file_may_be_edited_after_it_was_read(tmp_path, monkeypatch):
    file = tmp_path / "edited_later.py"
    file.write_text("def function(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module(file.stem).function
    before = print_of(function)
    file.write_text("# more\n" + file.read_text())
    assert print_of(function) == before
