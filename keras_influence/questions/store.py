"""Scores written to a folder block by block: for more than memory holds, and for runs cut off.

What the attributes of the store say is written anew after each block, so that a block counts as
a whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from keras_influence import checksums, storage
from keras_influence.engine.data.held import Batches
from keras_influence.engine.kernels.whole_set import WholeSet
from keras_influence.engine.loss.looks import few_of
from keras_influence.engine.problem import Problem
from keras_influence.errors import StaleError
from keras_influence.linalg.solvers import Solver
from keras_influence.questions import store_files
from keras_influence.questions.attempts import Attempt
from keras_influence.questions.blocks import Block, Target, block_size, solved_blocks
from keras_influence.questions.case import Case
from keras_influence.questions.case_file import positions_of_variables
from keras_influence.questions.evidence import ARRAYS, described
from keras_influence.questions.fingerprints import (
    alike,
    change_between,
    fingerprint,
    fingerprint_of_data,
    other_value,
)
from keras_influence.questions.plan import Plan
from keras_influence.version import __version__

Path = str | os.PathLike[str]


def check_store(store: Path | None) -> None:
    """Raise unless `store` is None, or a path that scores could be written to."""
    if store is None:
        return
    if not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"`store` should be the path of a folder. Received: {store!r}")
    store_files.zarr_package()
    path = pathlib.Path(store)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"`store` should be in a folder that exists. Received: {os.fspath(store)!r}"
        )
    if path.exists() and store_files.read_state(path) is None:
        raise ValueError(
            "`store` should be a folder that does not exist yet, or one that the same call has "
            f"begun to fill. Received: {os.fspath(store)!r}"
        )


def fill_store(store: Path, case: Case, examples: Batches, target: Target | None) -> None:
    """Write the scores of a `Case` on test examples, as far as they are not there yet.

    Raises:
        StaleError: what is there is of another model, other data or other settings.
        RuntimeError: another call is filling it.
    """
    path = pathlib.Path(store)
    contents = json.loads(storage.as_json(_contents(case, examples, target)))
    if not path.exists():
        _create(path, contents, case, examples)
    with store_files.alone(path):
        found = _Store.of(path, contents)
        if found.done < examples.n:
            _fill(found, case, examples, target)


def _fill(found: _Store, case: Case, examples: Batches, target: Target | None) -> None:
    def question(attempt: Attempt) -> None:
        found.begin(attempt.plans, described(case.problem, attempt.plan, target))
        blocks = solved_blocks(
            case.problem,
            attempt,
            examples,
            target,
            title=f"Influence on {examples.n} test examples",
            start=found.done,
            size=found.block,
        )
        for block in blocks:
            found.write(block)

    found.decided(case).ask(question, examples.n)


class _Store:
    """A folder of scores that is being filled.

    Args:
        path: the folder.
        state: what its attributes say.

    Attributes:
        done: test examples whose scores are there.
        block: test examples in a block.
    """

    def __init__(self, path: pathlib.Path, state: dict[str, Any]) -> None:
        self._path, self._state = path, state
        self.done, self.block = state["done"], state["block"]
        self._arrays = store_files.open_arrays(path)

    @classmethod
    def of(cls, path: pathlib.Path, contents: dict[str, Any]) -> _Store:
        """The store at a path.

        Raises:
            StaleError: it is of something else.
        """
        state = store_files.read_state(path) or {}
        change = _change(state["of"], contents)
        if change:
            way_out = "Choose another `store`, or delete that folder."
            raise StaleError(change, path, "store of scores", way_out)
        return cls(path, state)

    def decided(self, case: Case) -> Case:
        """The case with the plans by which the store was begun, if it was."""
        plans = [Plan.read(fields) for fields in self._state["plans"]]
        if not plans:
            return case
        first = [plan.written() for plan in case.plans[:1]]
        known = first == self._state["plans"][:1]
        return dataclasses.replace(case, plans=tuple(plans), factor=case.factor if known else None)

    def begin(self, plans: tuple[Plan, ...], about: dict[str, Any]) -> None:
        """What follows is by the first of these plans; what was done by another does not count."""
        written = json.loads(storage.as_json([plan.written() for plan in plans]))
        if written != self._state["plans"]:
            self.done = 0
            about = {**about, "passes": 0.0, "details": {}}
            self._state |= {"plans": written, "about": about, "done": 0}
            store_files.write_state(self._path, self._state)
        store_files.remove_leftovers(self._path, self.done // self.block)

    def write(self, block: Block) -> None:
        """The scores of a block, then what was found out about its solve, then that it is there."""
        where, solution, values = block.where, block.solution, self._arrays["values"]
        for columns, part in store_files.in_chunks(block.scores(), values.chunks[1]):
            values[where, columns] = part
        for name in ARRAYS:
            self._arrays[name][where] = np.array(getattr(solution, name))
        about = self._state["about"]
        about["passes"] += solution.passes
        about["details"] |= solution.details
        self.done = self._state["done"] = where.stop
        store_files.write_state(self._path, self._state)


def _contents(case: Case, examples: Batches, target: Target | None) -> dict[str, Any]:
    """What scores depend on, to be compared with what it is in another run."""
    settings, solver = case.settings, case.settings.solver
    method = solver.get_config() if isinstance(solver, Solver) else vars(solver)
    asked = [method, settings.damping, settings.curvature]
    if case.plans:
        # What an `Explainer` has decided, which a file of it keeps.
        plan = case.plans[0].written()
        asked = [plan[name] for name in ("solver", "damping", "curvature", "added")]
    before = checksums.values_of_function(target)
    values = _values_of_target(case.problem, examples, target)
    after = checksums.values_of_function(target)
    return {
        **fingerprint(case.problem),
        "test": fingerprint_of_data(case.problem, examples, "test data"),
        "target": checksums.fingerprint_of_function(target),
        # Which also depend on what a function reads besides: a global, an attribute.
        "targets": values,
        # Of a few; and what it reads besides, but for what it writes, as a list of its calls.
        "target_reads": checksums.fingerprints_of_values(
            {name: texts for name, texts in after.items() if before.get(name) == texts}
        ),
        "variables": positions_of_variables(case.problem),
        "settings": asked,
    }


def _values_of_target(problem: Problem, examples: Batches, target: Target | None) -> list[float]:
    """What a target gives for a few test examples, or for all as a whole."""
    if target is None:
        return []
    asked = examples if isinstance(target, WholeSet) else [few_of(examples)]
    return [float(value) for value in problem.outputs(asked, target)]


def _change(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What is not as it was, in words; "" if nothing."""
    change = change_between(saved, now)
    if change:
        return change
    words = {
        "test": "the test data have changed",
        "target": "`target` has changed",
        "variables": "`variables` has changed",
        "settings": "`method`, `damping` or `curvature` has changed",
    }
    change = next((words[name] for name in words if saved[name] != now[name]), "")
    # Which stores of earlier versions do not have.
    same = alike(saved.get("targets", now["targets"]), now["targets"])
    change = change or ("" if same else "what `target` gives has changed")
    name = other_value(saved, now, "target_reads")
    return change or (f"`{name}`, which `target` reads, has changed" if name else "")


def _create(path: pathlib.Path, contents: dict[str, Any], case: Case, examples: Batches) -> None:
    """An empty store for what these contents are."""
    parameters = case.problem.parameters
    solver = case.plans[0].solver if case.plans else case.settings.solver
    # Which solver "auto" will take is not known yet.
    each = solver.row_bytes if isinstance(solver, Solver) else Solver.row_bytes
    block = min(examples.n, block_size(parameters.size, each))
    state = {"version": __version__, "of": contents, "block": block, "done": 0, "plans": []}
    dtype = np.dtype(parameters.dtype.as_numpy_dtype).name
    store_files.create(path, (examples.n, case.problem.n), dtype, state)
