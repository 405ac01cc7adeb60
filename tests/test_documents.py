"""What the README shows runs, and the quickstart finds what it says it finds."""

import pathlib
import re
import sys

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture
def float32(tmp_path, monkeypatch):
    from tests.conftest import set_precision

    monkeypatch.chdir(tmp_path)
    set_precision("float32")


def test_the_readme_example_runs(float32, tmp_path, capsys):
    text = (ROOT / "README.md").read_text()
    example = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.S)
    assert text[: example.end()].count("\n") <= 60
    names = {}
    exec(example.group(1), names)
    assert names["scores"].values.shape == (10, 1500)
    assert names["scores"].converged.all()
    assert (tmp_path / "influence.png").exists()
    assert "proponent" in capsys.readouterr().out


def test_the_quickstart_explains_and_finds_wrong_labels(float32, tmp_path, capsys):
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


DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "benchmarks", "benchmarks/peers", "benchmarks/results")
    for path in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_files_that_exist_and_are_finished(path):
    text = path.read_text()
    assert not re.findall(r"@@|TODO|FIXME|TBD", text)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:tests|examples|benchmarks|docs|keras_influence)/[\w/.-]*\w)`", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
