"""Scores as a notebook shows them: a small table, with sign, unit and certificate."""

from keras_influence.report.contents import strongest
from keras_influence.report.page import environment
from keras_influence.report.words import meaning_of, statements

# Test examples, and their proponents and opponents, that are shown.
_ROWS, _STRONGEST = 5, 3


def small_page(scores):
    """A fragment of HTML without any script; None where Jinja2 is missing.

    Args:
        scores: `InfluenceScores`.
    """
    try:
        templates = environment()
    except ImportError:
        return None
    shown = range(min(_ROWS, scores.n_test))
    return templates.get_template("scores.html").render(
        rows=[(i, *strongest(scores, i, _STRONGEST)) for i in shown],
        n_test=scores.n_test,
        n_train=scores.n_train,
        meaning=meaning_of(scores),
        statements=statements(scores)[1:],
    )
