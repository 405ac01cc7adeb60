"""What the pictures of this package share. Needs matplotlib."""

COLOURS = ("#2166ac", "#b2182b", "#777777", "#1b7837")


def figure(width=4.6, height=3.8):
    """A `matplotlib.figure.Figure` with one set of axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
    made = Figure(figsize=(width, height), layout="constrained")
    axis = made.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return made, axis
