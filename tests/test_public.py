"""The public names and their arguments: what changes here changes users' code."""

import inspect

import keras_influence as ki

# Arguments after `*` are given by name.
SETTINGS = "method, damping, curvature, batch_size, class_weight, variables, verbose"
MATRIX = "damping, curvature, batch_size, class_weight, variables"
DATA = "batch_size, class_weight, variables, verbose"

QUESTIONS = {
    "influence": f"model, test, train, *, target, store, {SETTINGS}",
    "top_influence": f"model, test, train, k, *, target, {SETTINGS}",
    "self_influence": f"model, train, *, indices, {SETTINGS}",
    "group_influence": f"model, test, train, groups, *, order, target, {SETTINGS}",
    "parameter_influence": f"model, train_subset, train, *, order, {SETTINGS}",
    "input_influence": f"model, test, train, *, indices, target, {SETTINGS}",
    "hvp": f"model, v, train, *, {MATRIX}",
    "inverse_hvp": f"model, v, train, *, x0, {SETTINGS}",
    "operator": f"model, train, *, {MATRIX}",
    "losses": "model, data, *, batch_size, class_weight",
    "hessian_eigenvalues": f"model, train, k, *, which, tol, {MATRIX}, verbose",
    "hessian_trace": f"model, train, *, samples, seed, {MATRIX}, verbose",
    "with_change": "model, change, variables",
    "find_label_issues": f"model, train, *, by, predictions, {SETTINGS}",
    "Explainer": f"model, train, *, {SETTINGS}",
}

OTHER_FUNCTIONS = {
    "averaged_self_influence": f"models, train, *, indices, {SETTINGS}",
    "replay_influence": "replays, test, target, *, verbose",
    "representer_influence": ("model, test, train, *, target, batch_size, class_weight, verbose"),
    "source_influence": (f"model, test, train, tracin, *, segments, method, target, {DATA}"),
    "trak_influence": (
        f"model, test, train, *, output, target, dim, damping, seed, tracin, {DATA}"
    ),
    "prepare": f"model, train, *, {SETTINGS}",
    "load_prepared": "model, train, path, *, class_weight, verbose",
    "in_order": "data, path",
    "write_report": (
        "model, path, test, train, *, target, k, rows, suspicious, class_names, feature_names, "
        f"show, title, verification, {SETTINGS}"
    ),
}

CLASSES = {
    "AveragedSelfInfluence": "values, error, models",
    "InfluenceCallback": "test, train, every, folder, log_dir, report, **options",
    "InfluenceMixin": "",
    "InfluenceModel": "*args, **kwargs",
    "InfluenceScores": (
        "values, residual, iterations, converged, solver, curvature, damping, passes, details, "
        "reason, target, parameters, error"
    ),
    "TopInfluence": (
        "proponents, opponents, n_train, residual, iterations, converged, solver, curvature, "
        "damping, passes, details, reason, target, parameters"
    ),
    "LabelIssues": "index, given, suggested, predicted, self_influence, loss, margin, by",
    "Replay": "x, y, *, batch_size, seed, sample_weight, class_weight, folder, budget",
    "SmoothHinge": "temperature, reduction, name",
    "TracIn": "every, folder",
    "WholeSet": "function",
}

SOLVERS = {
    "ASTRA",
    "Arnoldi",
    "Auto",
    "CG",
    "Direct",
    "EKFAC",
    "LiSSA",
    "MINRES",
    "NCG",
    "Nystrom",
    "TwoLevel",
    "Woodbury",
}
ERRORS = {
    "ConvergenceWarning", "CurvatureWarning", "DivergenceError", "NegativeCurvatureError",
    "ObjectiveWarning", "SolverError", "StaleError",
}  # fmt: skip
OTHERS = {"__version__", "evaluation", "verify"}

METHODS = {
    "Explainer": {
        "influence": "self, test, *, target, store",
        "top_influence": "self, test, k, *, target",
        "self_influence": "self, *, indices",
        "find_label_issues": "self, *, by, predictions",
        "group_influence": "self, test, groups, *, order, target",
        "parameter_influence": "self, train_subset, *, order",
        "input_influence": "self, test, *, indices, target",
        "hvp": "self, v",
        "inverse_hvp": "self, v, *, x0",
        "losses": "self, data",
        "save": "self, path",
        "load": "model, train, path, *, class_weight, verbose",
        "method": None,
        "damping": None,
        "curvature": None,
    },
    "InfluenceScores": {
        "top": "self, k",
        "bottom": "self, k",
        "averaged": "parts",
        "relative": "self, self_influence",
        "save": "self, path",
        "load": "path",
        "open": "path",
        "to_pandas": "self",
        "plot": "self, test, train, **options",
        "report": "self, path, test, train, **options",
        "n_test": None,
        "n_train": None,
    },
    "LabelIssues": {"to_pandas": "self"},
    "TopInfluence": {"save": "self, path", "load": "path", "n_test": None},
    "Replay": {
        "influence": "self, test, target, *, verbose",
        "losses": "self, test, weights, target, *, verbose",
        "smoothness": "self, test, target, *, fraction, trials, seed, scores, verbose",
    },
    "TracIn": {
        "influence": f"self, model, test, train, *, target, {DATA}",
        "self_influence": f"self, model, train, *, {DATA}",
        "load": "folder",
    },
}


def arguments(function):
    """The names of a function's arguments, as in its definition."""
    shown, named = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not named:
            shown.append("*")
        named = named or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        shown.append(star + p.name)
    return ", ".join(shown)


def test_names():
    expected = {*QUESTIONS, *OTHER_FUNCTIONS, *CLASSES, *SOLVERS, *ERRORS, *OTHERS}
    assert set(ki.__all__) == expected
    assert all(hasattr(ki, name) for name in expected)


def test_signatures():
    found = {
        name: arguments(getattr(ki, name)) for name in {**QUESTIONS, **OTHER_FUNCTIONS, **CLASSES}
    }
    # Keras gives every layer's subclass a signature of its own.
    found["InfluenceMixin"] = ""
    assert found == {**QUESTIONS, **OTHER_FUNCTIONS, **CLASSES}


def own(cls):
    """The public attributes that a class of this package defines, callbacks' hooks apart."""
    return {n: f for n, f in vars(cls).items() if not n.startswith(("_", "on_"))}


def test_methods():
    for name, expected in METHODS.items():
        found = own(getattr(ki, name))
        fields = set(getattr(getattr(ki, name), "__dataclass_fields__", ()))
        shown = {
            n: None if isinstance(f, property) else arguments(getattr(getattr(ki, name), n))
            for n, f in found.items()
            if n not in fields
        }
        assert shown == expected, name


def test_models_answer_as_functions_do():
    """A method is the function of that name, with the model first; two are about explainers."""
    methods = own(ki.InfluenceMixin)
    assert arguments(methods.pop("explainer")) == f"self, train, *, {SETTINGS}"
    assert arguments(methods.pop("load_explainer")) == "self, train, path, *, class_weight, verbose"
    # The name of the function is that of the room.
    assert methods.pop("report") is ki.write_report
    # A `keras.Model` has losses of its own.
    assert set(methods) == {*QUESTIONS, "verify"} - {"losses", "Explainer"}
    assert all(method is getattr(ki, name) for name, method in methods.items())
