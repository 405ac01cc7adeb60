"""The documentation site: it builds without a warning, its links lead somewhere, every public name is in it."""

import html.parser
import inspect
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

import keras_influence
from keras_influence import errors, evaluation
from tests.test_documents import _anchors

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))


# ---- what errors and warnings say


def _explained_classes():
    """Every exception and warning of the package, found in its source."""
    for path in (ROOT / "keras_influence").rglob("*.py"):
        for name in re.findall(
            r"^class (\w+)\(\w*(?:Error|Warning)\b.*\):", path.read_text(), re.MULTILINE
        ):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield getattr(__import__(module, fromlist=[name]), name)


def test_every_error_and_warning_ends_with_a_heading_of_the_documentation():
    classes = {c.__name__: c for c in _explained_classes()}
    assert set(classes) > {"SolverError", "StaleError", "RefusedLoss", "CopyError"}
    anchors = _anchors(ROOT / errors.DOCS)
    # Never shown: what its message says goes into another one.
    classes.pop("InnerCallError")
    for name, kind in classes.items():
        assert kind.anchor in anchors, name
        if "__init__" not in vars(kind):
            assert str(kind("It broke.")) == f"It broke. See {errors.DOCS}#{kind.anchor}"
            assert str(kind("Did it?")) == f"Did it? See {errors.DOCS}#{kind.anchor}"


def test_other_messages_name_headings_that_exist():
    sources = [p.read_text() for p in (ROOT / "keras_influence").rglob("*.py")]
    named = {a for text in sources for a in re.findall(r"see\(['\"]([\w-]+)['\"]\)", text)}
    assert {"other-batches", "mixed-examples", "random-model"} <= named
    assert named <= _anchors(ROOT / errors.DOCS)


def test_what_was_found_stays_without_the_link():
    error = errors.NegativeCurvatureError(-0.5, "CG")
    assert error.finding == "CG met negative curvature"
    assert str(error).endswith(f"too. See {errors.DOCS}#negative-curvature")
    assert errors.SolverError("It broke.").finding == "It broke"
    stale = errors.StaleError("the loss has changed", "f.npz")
    assert str(stale).endswith(f"(model, train, ...)`. See {errors.DOCS}#stale")


def test_a_warning_shows_the_link_to_who_catches_it():
    with pytest.warns(errors.ConvergenceWarning, match=r"Raise it\. See docs/.*#not-converged$"):
        errors.warn("Raise it.", errors.ConvergenceWarning)


# ---- the API page


def _members(page):
    return set(re.findall(r"^\.\. auto\w+:: keras_influence\.([\w.]+)", page, re.MULTILINE))


def test_every_public_name_is_on_the_api_page():
    page = (DOCS / "api.md").read_text()
    wanted = set(keras_influence.__all__) - {"__version__", "evaluation"}
    wanted |= {f"evaluation.{name}" for name in evaluation.__all__ if name != "verify"}
    modules = {n for n in keras_influence.__all__ if inspect.ismodule(getattr(keras_influence, n))}
    assert modules == {"evaluation"}
    missing = wanted - _members(page)
    assert not missing, f"docs/api.md lacks {sorted(missing)}"
    assert "`keras_influence.__version__`" in page


# ---- the notebooks


def _cells(path):
    return re.findall(
        r"^```\{code-cell\} python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE
    )


def test_notebooks_end_with_what_to_look_at_and_a_report():
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        text = path.read_text()
        written = re.findall(r'model\.report\(\s*"(report_\w+\.html)"', _cells(path)[-1])
        assert "## What to look at" in text
        assert f'<a href="{written[0]}">' in text.rsplit("```", 1)[1]
        for code in _cells(path):
            compile("\n".join(x for x in code.split("\n") if x[:1] != ":"), path.name, "exec")


# ---- the site


class _Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name") if tag == "a" else None}
        self.links += [found[k] for k in ("href", "src") if found.get(k) and tag != "link"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(package)
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, DOCS / "build.py", "--no-notebooks", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: _Page(path) for path in (output / "html").rglob("*.html")}


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site):
    dead, seen = [], 0
    for path, page in site.items():
        for link in page.links:
            address = urllib.parse.urlsplit(link)
            # Notebooks write their reports when they are executed.
            if address.scheme or address.netloc or "report_" in link:
                continue
            target = (path.parent / urllib.parse.unquote(address.path)).resolve()
            target = path if not address.path else target
            anchor, seen = urllib.parse.unquote(address.fragment), seen + 1
            known = site[target].anchors if target in site else {""}
            if not target.exists() or (anchor and anchor not in known):
                dead.append(f"{path.name}: {link}")
    assert seen > 500
    assert not dead


@pytest.mark.slow
def test_the_site_has_what_messages_name_and_every_public_name(site):
    pages = {path.name: page for path, page in site.items()}
    for kind in _explained_classes():
        if hasattr(kind, "anchor"):
            assert kind.anchor in pages[pathlib.Path(errors.DOCS).stem + ".html"].anchors
    for name in set(keras_influence.__all__) - {"__version__", "evaluation"}:
        assert f"keras_influence.{name}" in pages["api.html"].anchors, name
