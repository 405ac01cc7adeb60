"""The report as one HTML file that needs no network: Jinja2, with escaping, and a script."""

import base64
import hashlib
import os
import pathlib

from keras_influence.report.contents import Options, contents
from keras_influence.report.words import meaning_of, short, statements
from keras_influence.storage import check_file, writing

_NEEDS = 'report() needs Jinja2 and Pillow: pip install "keras-influence[report]"'


def write_page(
    scores,
    path,
    test=None,
    train=None,
    *,
    model=None,
    self_influence=None,
    verification=None,
    **options,
):
    """Write one HTML file in which the scores can be explored, by double click, without a server.

    Each test example stands there with its strongest proponents and opponents, each training
    example with the test examples that it helps and harms; with the scores' certificates in words.

    Args:
        scores: `InfluenceScores`.
        path: file name, by convention `.html`; its folder must exist.
        test, train: the data that the scores are about, in the forms that `influence` takes. The
            few examples that are shown are fetched by position. Without them there are positions.
        model: the model; then there are predictions and losses too, and with them the
            misclassified examples.
        self_influence: (n_train,) from `self_influence`; then there is a list of suspicious labels.
        verification: what `verify` found; its verdict is shown.
        **options: `k` (8), `rows`, `suspicious` (100), `class_names`, `feature_names`, `show`,
            `title`; see `keras_influence.report.contents.Options`.

    Returns:
        The file's path, a `pathlib.Path`.

    Raises:
        ImportError: Jinja2 or Pillow is missing.
        OSError: the folder of `path` does not exist, or there is a folder of that name.
        ValueError, TypeError: an argument is not usable; the message names it.
    """
    chosen = Options(**options)
    check_page(path)
    templates = environment()
    found = contents(scores, test, train, chosen, model, self_influence)
    html = _rendered(templates, found, scores, chosen.title, verification)
    with writing(path) as file:
        file.write(html.encode("utf-8"))
    return pathlib.Path(os.fspath(path))


def check_page(path):
    """Raise now for what would fail after long work: a missing package, a missing folder.

    Raises:
        ImportError: Jinja2 or Pillow is missing.
        TypeError: `path` is no name of a file.
        OSError: the folder of `path` does not exist, or there is a folder of that name.
    """
    check_packages()
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` should be the name of a file. Received: {type(path).__name__}")
    check_file(path)
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(
            f"`path` should be in a folder that exists. Received: {os.fspath(path)!r}"
        )


def check_packages():
    """Raise an `ImportError` with what to install where Jinja2 or Pillow is missing."""
    environment()
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(_NEEDS) from error


def _rendered(templates, found, scores, title, verification):
    script, style = (_source(templates, f"report.{kind}") for kind in ("js", "css"))
    key = hashlib.sha256(repr((title, found["suspicious"])).encode()).hexdigest()[:12]
    return templates.get_template("report.html").render(
        **found,
        title=title,
        key=key,
        meaning=meaning_of(scores),
        statements=statements(scores, verification),
        target=scores.target,
        script=script,
        style=style,
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
    )


def environment():
    """Jinja2 with our templates; what is not a template's own text is escaped."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(_NEEDS) from error
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_influence.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["short"] = short
    return templates


def _source(templates, name):
    """A file that is part of the page as it is."""
    import markupsafe

    return markupsafe.Markup(templates.loader.get_source(templates, name)[0])


def _hash(text):
    """How a policy names the one script or style sheet that may run."""
    digest = hashlib.sha256(str(text).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
