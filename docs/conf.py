"""The documentation site: `python docs/build.py` builds it."""

import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from keras_influence.version import __version__  # noqa: E402

project = "keras_influence"
author = "The keras_influence authors"
version = release = __version__
html_title = f"keras_influence {__version__}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # A page that is read on GitHub too may begin as it likes.

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "attrs_inline"]

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings say in words what their arguments are, and put names between single backticks.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Pages of the repository's root, where they are on this site.
_ELSEWHERE = {
    "README.md#how-to-read-the-numbers": "reading.md",
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_this_site(text):
    """A page's Markdown with its links to and from the repository's root made into the site's own."""
    for there, here in _ELSEWHERE.items():
        text = re.sub(rf"\]\((?:\.\./)?{re.escape(there)}(?=[)#])", f"]({here}", text)
    return re.sub(r"\]\(docs/", "](", text)


def _page(app, name, content):
    content[0] = on_this_site(content[0])


def _included(app, path, name, content):
    content[0] = on_this_site(content[0])


def _docstring(app, what, name, thing, options, lines):
    """Docstrings have code between backticks and no other mark-up: stars and bars are what they are."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
        lines[i] = "`".join(parts)


def _reports(app, error):
    """The reports that the notebooks have written go beside them."""
    for path in (ROOT / "docs" / "notebooks").glob("report_*.html"):
        if error is None and app.config.nb_execution_mode != "off":
            shutil.copy(path, pathlib.Path(app.outdir) / "notebooks")


def setup(app):
    """What Sphinx calls: pages are read here and on GitHub."""
    app.connect("source-read", _page)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # Before napoleon.
    app.connect("build-finished", _reports)
    app.connect("include-read", _included)
    return {"version": version, "parallel_read_safe": True}
