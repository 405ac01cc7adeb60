"""What the tests of reports share: scores without a model, and pages read again."""

import base64
import hashlib
import html.parser
import io
import json

import numpy as np

import keras_influence as ki


def scores_of(values, **fields):
    """`InfluenceScores` with these values."""
    count = len(values)
    return ki.InfluenceScores(
        **{
            "values": np.asarray(values, float),
            "residual": np.full(count, 2e-7),
            "iterations": np.ones(count, int),
            "converged": np.ones(count, bool),
            "solver": ki.CG().get_config(),
            "curvature": "gauss_newton",
            "damping": 0.01,
            "passes": 12.0,
            **fields,
        }
    )


class Page(html.parser.HTMLParser):
    """A page as a browser without scripts sees it.

    Attributes:
        tags: list of (tag, dict of attributes), in order.
        text: what can be read.
        scripts, styles: texts of these elements.
        data: what the script is given.
    """

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.scripts, self.styles = [], "", [], []
        self._inside = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag in ("script", "style"):
            getattr(self, f"{tag}s").append("")

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside in ("script", "style"):
            getattr(self, f"{self._inside}s")[-1] += data
        else:
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def policy(self):
        """The Content-Security-Policy as a dict."""
        (content,) = (m["content"] for m in self.named("meta") if "http-equiv" in m)
        parts = [part.split(maxsplit=1) for part in content.split(";")]
        return dict(parts)


def sha256(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def pixels_of(uri):
    """The picture of a data URI as an array."""
    from PIL import Image

    _, _, content = uri.partition(";base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
