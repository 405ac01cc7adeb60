"""The seam to matplotlib: what makes figures, and turns them into pictures, stands here."""

import functools
import io

COLOURS = ("#2166ac", "#b2182b", "#777777", "#1b7837")


def new_figure(width, height):
    """An empty `matplotlib.figure.Figure`, of a size in inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # Slow to import, and not needed for scores.
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    # So that a notebook shows it, which by itself shows figures of pyplot only.
    figure._repr_png_ = functools.partial(png, figure)
    return figure


def new_axes():
    """A figure with one set of axes, and the axes."""
    figure = new_figure(4.6, 3.8)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def png(figure, dpi=130):
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
