"""What the documents show runs and exists, and the quickstart finds what it says it finds."""

import ast
import contextlib
import functools
import inspect
import io
import pathlib
import re
import sys

import keras
import numpy as np
import pytest

import keras_influence
from tests.conftest import set_precision

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

FOLDERS = (".", "docs", "docs/notebooks", "benchmarks", "benchmarks/peers", "benchmarks/results")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
WITH_CODE = [path for path in DOCUMENTS if "```python" in path.read_text()]
README = ROOT / "README.md"
SOLVERS = [
    "ASTRA",
    "CG",
    "EKFAC",
    "MINRES",
    "NCG",
    "Arnoldi",
    "Auto",
    "Direct",
    "LiSSA",
    "Nystrom",
    "TwoLevel",
    "Woodbury",
]


def _name(path):
    return str(path.relative_to(ROOT))


def _code(path):
    """The Python fragments of a document, on the lines where they stand in it."""
    for found in re.finditer(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
        lines = found.string[: found.start(1)].count("\n")
        yield compile("\n" * lines + found.group(1), str(path), "exec")


@pytest.fixture
def float32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_precision("float32")


# ---- what they show


def _run(path, names):
    for code in _code(path):
        exec(code, names)
    return names


@functools.cache
def _left_by_the_example():
    """The names that it leaves, what it prints, and whether it draws."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        names = _run(README, {})
    return names, shown.getvalue(), pathlib.Path("influence.png").exists()


def test_the_readme_example_runs(float32):
    text = README.read_text()
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.DOTALL)
    assert text[: example.end()].count("\n") <= 60
    assert text.count("\n") <= 130
    names, shown, drawn = _left_by_the_example()
    assert names["scores"].values.shape == (10, 1500)
    assert names["scores"].converged.all()
    assert drawn
    assert "proponent" in shown


@pytest.mark.parametrize("path", [p for p in WITH_CODE if p != README], ids=_name)
def test_fragments_run_after_the_example_of_the_readme(path, float32):
    if "store=" in path.read_text():
        pytest.importorskip("zarr")
    if path.name == "dask.md":
        pytest.importorskip("dask.array")
    _run(path, dict(_left_by_the_example()[0]))


def test_the_quickstart_explains_and_finds_wrong_labels(float32, capsys):
    import quickstart

    train, test, changed = quickstart.load()
    model = quickstart.train_model(train)
    scores = quickstart.explain(model, train, test, [0, 1])
    assert "without it, the loss would rise" in capsys.readouterr().out
    top = train[1][scores.top(3).indices]
    assert (top == test[1][[0, 1]][:, None]).mean() > 0.8
    assert quickstart.find_wrong_labels(model, train, changed) > 0.9
    assert isinstance(model, keras.Model)
    assert len(np.unique(changed)) == 71


# ---- what they name


def _inline(path):
    """What stands between single backticks, outside of fences."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def _anchors(path):
    """The headings of a document, as links name them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_documents_name_files_that_exist_and_are_finished(path):
    text = path.read_text()
    assert not re.findall(r"@@|TODO|FIXME|TBD", text)
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        target = path.parent / link if link else path
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            missing.append(f"{link}#{anchor}")
    named = re.findall(
        r"`((?:tests|examples|benchmarks|docs|keras_influence|\.ci)/[\w/.-]*\w)`", text
    )
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_documents_name_things_of_the_package_that_exist(path):
    """Dotted names, and solvers and classes with their options."""
    text = path.read_text()
    for dotted in re.findall(r"\bkeras_influence((?:\.[A-Za-z_]\w*)+)", text):
        if dotted.split(".")[1] not in ("md", "py"):
            functools.reduce(getattr, dotted.split(".")[1:], keras_influence)
    for names in re.findall(r"from keras_influence import ([\w, ]+)", text):
        assert not set(names.split(", ")) - set(keras_influence.__all__)
    for method in re.findall(r"\bmodel\.(\w+)\(.*?train", text):
        assert hasattr(keras_influence.InfluenceModel, method), method
    for call in _inline(path):
        if re.match(rf"({'|'.join(SOLVERS)})\(.*\)$", call):
            called = ast.parse(call, mode="eval").body
            options = inspect.signature(getattr(keras_influence, called.func.id)).parameters
            assert {keyword.arg for keyword in called.keywords} <= set(options)


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.match(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d$", v) for v in versions[1:])
    sections = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= sections
