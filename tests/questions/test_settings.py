"""Settings: each argument checked in one place, whatever the question."""

import dataclasses
import inspect

import numpy as np
import pytest

import keras_influence as ki
from keras_influence.questions.settings import (
    InverseSettings,
    MatrixSettings,
    PathSettings,
    Settings,
    SpectrumSettings,
)

ALL = ["method", "damping", "curvature", "batch_size", "class_weight", "variables", "verbose"]

BAD = [
    ({"method": "newton"}, ValueError, "`method` should be one of .*'cg'"),
    ({"method": None}, TypeError, "`method` should be one of"),
    ({"method": ki.CG}, TypeError, "`method` should be one of"),
    ({"method": {"class_name": "CG", "config": {"a": 1}}}, TypeError, "`method` has a config that"),
    ({"damping": -1}, ValueError, r"`damping` should be a number >= 0. Received: damping=-1"),
    ({"damping": float("nan")}, ValueError, "`damping` should be a number >= 0"),
    ({"damping": "big"}, TypeError, "`damping` should be a number >= 0"),
    ({"damping": True}, TypeError, "`damping` should be a number >= 0"),
    ({"damping": [0.1]}, TypeError, "`damping` should be a number >= 0"),
    ({"damping": np.ones(2)}, TypeError, "`damping` should be a number >= 0"),
    ({"curvature": "fisher"}, ValueError, r"`curvature` should be one of \['auto', 'gauss"),
    ({"curvature": None}, ValueError, "`curvature` should be one of"),
    ({"curvature": ["hessian"]}, ValueError, "`curvature` should be one of"),
    ({"batch_size": 0}, ValueError, "`batch_size` should be an integer >= 1"),
    ({"batch_size": 0.5}, TypeError, "`batch_size` should be an integer >= 1"),
    ({"batch_size": True}, TypeError, "`batch_size` should be an integer >= 1"),
    ({"class_weight": "balanced"}, TypeError, "`class_weight` should be a dict"),
    ({"class_weight": {0: -1.0}}, ValueError, "`class_weight` should be a dict"),
    ({"class_weight": {"a": 1.0}}, ValueError, "`class_weight` should be a dict"),
    ({"verbose": "loud"}, ValueError, "`verbose` should be 'auto', 0, 1 or 2"),
    ({"verbose": np.ones(2)}, ValueError, "`verbose` should be 'auto', 0, 1 or 2"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD, ids=[str(b[0]) for b in BAD])
def test_a_bad_value_is_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        Settings.of(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"damping": "auto"},
        {"damping": np.float32(0.5), "batch_size": np.int64(3)},
        {"method": ki.CG(tol=1e-8)},
        {"method": {"class_name": "cg", "config": {"tol": 1e-8}}},
        {"class_weight": {0: 1, 2: np.float32(0.5)}},
    ],
)
def test_good_values_are_kept(arguments):
    settings = Settings.of(arguments)
    assert {name: getattr(settings, name) for name in arguments} == arguments


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().damping = 1.0


def test_defaults_may_differ_and_arguments_come_first():
    assert Settings.of({}, damping=0.5).damping == 0.5
    assert Settings.of({"damping": 0.1}, damping=0.5).damping == 0.1


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Settings, ALL),
        (InverseSettings, ALL),
        (SpectrumSettings, ALL[1:]),
        (MatrixSettings, ALL[1:6]),
        (PathSettings, ALL[3:]),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(kind, names):
    assert kind.arguments() == names
    with pytest.raises(TypeError, match=f"`depth` is an unexpected.*are: {', '.join(names)}\\."):
        kind.of({"depth": 3})


@pytest.mark.parametrize(
    ("given", "meant"),
    [("dampening", "damping"), ("batchsize", "batch_size"), ("curvatures", "curvature")],
)
def test_the_nearest_name_is_offered(given, meant):
    with pytest.raises(TypeError, match=f"`{given}` is an.*Did you mean `{meant}`\\?"):
        Settings.of({given: 1})


@pytest.mark.parametrize("kind", [InverseSettings, SpectrumSettings, MatrixSettings])
def test_a_question_about_one_matrix_has_to_name_it(kind):
    assert kind().curvature == "hessian"
    with pytest.raises(ValueError, match=r"one of \['gauss_newton', 'hessian'\]"):
        kind.of({"curvature": "auto"})


# ---- the functions that take them

FUNCTIONS = [
    (ki.influence, Settings),
    (ki.self_influence, Settings),
    (ki.group_influence, Settings),
    (ki.parameter_influence, Settings),
    (ki.input_influence, Settings),
    (ki.Explainer, Settings),
    (ki.inverse_hvp, InverseSettings),
    (ki.hvp, MatrixSettings),
    (ki.operator, MatrixSettings),
    (ki.hessian_eigenvalues, SpectrumSettings),
    (ki.hessian_trace, SpectrumSettings),
    (ki.TracIn.influence, PathSettings),
    (ki.TracIn.self_influence, PathSettings),
]


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS, ids=lambda f: f.__qualname__)
def test_signatures_show_them_by_name_and_default(function, kind):
    parameters = inspect.signature(function).parameters
    shown = {n: p.default for n, p in parameters.items() if n in ALL}
    assert list(shown) == kind.arguments()
    assert shown == {name: getattr(kind(), name) for name in kind.arguments()}
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize(("function", "kind"), FUNCTIONS, ids=lambda f: f.__qualname__)
def test_each_function_refuses_what_its_settings_do(function, kind):
    """Before it looks at anything else: the other arguments are no models and no data."""
    positional = [
        p for p in inspect.signature(function).parameters.values() if p.default is p.empty
    ]
    others = [ki.TracIn() if p.name == "self" else None for p in positional]
    with pytest.raises(TypeError, match="`dampin` is an unexpected keyword argument"):
        function(*others, dampin=0.1)
    with pytest.raises(ValueError, match="`batch_size`"):
        function(*others, batch_size=0)
