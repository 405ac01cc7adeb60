"""A case that was decided, with its factorisation, in a file and back."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from keras_influence import storage
from keras_influence.engine.parameters import Parameters
from keras_influence.engine.problem import Problem
from keras_influence.errors import StaleError
from keras_influence.linalg.factors import packing
from keras_influence.questions.case import Case
from keras_influence.questions.fingerprints import change_between, fingerprint
from keras_influence.questions.plan import Plan
from keras_influence.questions.settings import Settings
from keras_influence.version import __version__

Path = str | os.PathLike[str]

# Of what is written: a file of another form is not read.
_FORM = 2


def write_case(path: Path, case: Case) -> None:
    """Write a case with plans and a factor; see `Explainer.save`."""
    problem = case.problem
    arrays: list[np.ndarray] = []
    factor = packing.pack(case.factor, arrays)
    settings = {
        "version": __version__,
        "form": _FORM,
        "plans": [plan.written() for plan in case.plans],
        "curvature": case.settings.curvature,
        "batch_size": case.settings.batch_size,
        "variables": positions_of_variables(problem),
        "fingerprint": fingerprint(problem),
        "factor": factor,
        "arrays": len(arrays),
    }
    named = {f"array_{i}": array for i, array in enumerate(arrays)}
    storage.write_arrays(path, {"settings": np.array(storage.as_json(settings)), **named})


def read_case(model: Any, train: Any, path: Path, class_weight: Any, verbose: Any) -> Case:
    """Read what `write_case` wrote; see `Explainer.load`."""
    arrays = storage.read_arrays(path, "Explainer.save", ["settings"])
    saved = json.loads(str(arrays["settings"]))
    if "plans" not in saved:
        raise ValueError(f"`path` should be a file written by Explainer.save; {path} is not.")
    if saved.get("form") != _FORM:
        raise StaleError("the form of such files has changed", path)
    plans = tuple(Plan.read(plan) for plan in saved["plans"])
    trainable = model.trainable_variables
    if max(saved["variables"]) >= len(trainable):
        raise StaleError("the model has lost trainable variables", path)
    settings = Settings(
        method=plans[0].solver,
        damping=plans[0].damping,
        curvature=saved["curvature"],
        batch_size=saved["batch_size"],
        class_weight=class_weight,
        variables=[trainable[i] for i in saved["variables"]],
        verbose=verbose,
    )
    problem = settings.problem(model, train)
    change = change_between(saved["fingerprint"], fingerprint(problem))
    if change:
        raise StaleError(change, path)
    found = [arrays[f"array_{i}"] for i in range(saved["arrays"])]
    return Case(problem, settings, plans, packing.unpack(saved["factor"], found))


def positions_of_variables(problem: Problem) -> list[int | None]:
    """Where θ's variables stand among the trainable ones."""
    trainable = Parameters(problem.model.trainable_variables)
    return [trainable.index(v) for v in problem.parameters.variables]
