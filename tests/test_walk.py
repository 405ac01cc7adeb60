"""What is found on the way from a function: all that it reads, in whatever it stands, and not what it writes."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest

from keras_influence.checksums import fingerprint_of_function as print_of


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    rate: float = 0.1


class Table:
    """A setter that nothing calls changes nothing as a function runs."""

    def __init__(self, *rows):
        self.rows = {"first": rows}

    def __getitem__(self, name):
        return self.rows[name]

    def set_rows(self, *rows):
        self.rows = {"first": rows}


class State:
    asked = 0


class Setting:
    """What it is called for sets an attribute of this name of something else."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, x):
        set_rate(x, self.rate)


def set_rate(x, rate):
    x.rate = rate


RATES, WHERE, CHOSEN, ROWS = [0.1, 0.2], pathlib.Path("a"), Settings(), Table(1)
LIBRARY, LOG, SEEN, STATE, SETTING, EPOCHS = np, [], {}, State(), Setting(0.1), 1


def rate_of(settings):
    return given(settings)


def given(settings):
    return settings.rate


def noted(log, value):
    log.append(value)


def asked():
    STATE.asked += 1


READING = {
    "a list": (lambda x: RATES[0] * x, "RATES", [0.3, 0.2]),
    "a path": (lambda x: WHERE / x, "WHERE", pathlib.Path("b")),
    "what it gives to another": (lambda x: rate_of(CHOSEN) * x, "CHOSEN", Settings(0.2)),
    "what an operator reads": (lambda x: ROWS[x], "ROWS", Table(2)),
    "an attribute of another's name": (lambda x: SETTING(x), "SETTING", Setting(0.2)),
    "a module": (lambda x: LIBRARY.sum(x), "LIBRARY", keras.ops),
    "the last digit": (lambda x: EPOCHS * x, "EPOCHS", 1 + 1e-15),
}


@pytest.mark.parametrize("name", READING)
def test_a_function_is_another_where_it_reads(name, monkeypatch):
    function, read, value = READING[name]
    before = print_of(function)
    monkeypatch.setitem(globals(), read, value)
    assert print_of(function) != before


def power(exponent):
    return lambda x: x**exponent


def test_which_of_two_functions_comes_twice():
    def each(*functions):
        return lambda x: [function(x) for function in functions]

    two, three = power(2), power(3)
    assert print_of(each(two, two, three)) != print_of(each(two, three, three))
    assert print_of(np.add) != print_of(np.multiply)


def counting():
    calls = 0

    def function(x):
        nonlocal calls
        calls += 1
        return x

    return function


WRITING = {
    "a list": lambda x: LOG.append(x),
    "a list by another function": lambda x: [noted(LOG, x), len(LOG)],
    "a dict": lambda x: SEEN.update({x: 1}),
    "an attribute by another function": lambda x: [STATE.asked, asked()],
    "what it closes over": counting(),
}


@pytest.mark.parametrize("name", WRITING)
def test_a_function_is_the_same_after_it_has_written(name):
    function = WRITING[name]
    before = print_of(function)
    function(1)
    assert print_of(function) == before
