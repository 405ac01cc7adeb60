"""Pictures of influence scores. Needs matplotlib."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_influence.report.canvas import COLOURS, new_figure
from keras_influence.report.labels import class_name
from keras_influence.report.parts import channels_last, is_image
from keras_influence.validate import as_positions

_COLOURS = {"test": "black", "proponent": COLOURS[3], "opponent": COLOURS[1]}


def gallery(
    scores, test=None, train=None, k=4, rows=None, class_names=None, score_format="{:+.2g}"
):
    """Each test example beside its strongest proponents and opponents.

    Images (height, width) or (height, width, channels) with one, three or four channels are shown
    as such; other examples as a table of index, label and score.

    Args:
        scores: `InfluenceScores`.
        test, train: the `(x, y)` arrays that the scores are about. Without them the
            gallery is a table of indices.
        k: proponents and opponents to show for each test example.
        rows: indices of the test examples to show, or a mask; the first six by default.
        class_names: a list or dict of names, to show instead of integer labels.
        score_format: a format string for scores.

    Returns:
        A `matplotlib.figure.Figure`, to be saved or shown.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: `test` or `train` has another length than the scores.
    """
    test = _Examples(test, scores.n_test, "test", class_names)
    train = _Examples(train, scores.n_train, "train", class_names)
    if rows is None:
        rows = np.arange(min(6, scores.n_test))
    else:
        rows = as_positions(np.atleast_1d(rows), scores.n_test, "rows", "test")
    # Of scores on a disk, only what is shown is read.
    shown = dataclasses.replace(scores, values=np.stack([scores.values[i] for i in rows]))
    sides = shown.top(k), shown.bottom(k)
    entries = [
        (i, *((r.indices[at], [score_format.format(v) for v in r.values[at]]) for r in sides))
        for at, i in enumerate(rows)
    ]
    draw = _draw_images if test.images is not None and train.images is not None else _draw_table
    return draw(entries, test, train)


def _outputs_of(y):
    """The labels of each output of a model."""
    if isinstance(y, dict):
        return list(y.values())
    several = isinstance(y, (list, tuple)) and all(
        isinstance(part, (np.ndarray, tf.Tensor)) for part in y
    )
    return list(y) if several else [y]


class _Examples:
    """What a picture needs of one data set: images if there are any, and label texts."""

    def __init__(self, data, count, name, class_names):
        self.images, self._labels, self._names = None, None, class_names
        if data is None:
            return
        if not isinstance(data, tuple) or not data:
            raise TypeError(f"`{name}` should be a tuple (x, y). Received: {type(data).__name__}")
        x, y, *_ = (*data, None)
        found = [] if y is None else [np.asarray(part) for part in _outputs_of(y)]
        sizes = [len(part) for part in found or [tf.nest.flatten(x)[0]]]
        if any(size != count for size in sizes):
            raise ValueError(
                f"`{name}` should be the {count} examples of the scores. Received: {sizes[0]}"
            )
        if len(found) == 1:  # Of several outputs no label says it all.
            (y,) = found
            one_hot = y.ndim == 2 and y.shape[1] > 1
            self._labels = y.argmax(1) if one_hot else y.reshape(count, -1)[:, 0]
            self._signed = set(np.unique(self._labels).tolist()) == {-1, 1}
        images = None if tf.nest.is_nested(x) else np.asarray(x)
        if images is not None and count and images.dtype.kind in "biuf" and is_image(images[0]):
            self.images = images

    def label(self, index):
        if self._labels is None:
            return ""
        value = self._labels[index]
        if self._names is not None and value == np.round(value):
            return class_name(value, self._names, self._signed)
        return f"{value:.3g}" if isinstance(value, np.floating) else str(value)


def _draw_images(entries, test, train):
    k = len(entries[0][1][0])
    columns = 1 + 2 * k
    figure = new_figure(1.15 * columns, 1.55 * len(entries) + 0.7)
    axes = figure.subplots(len(entries), columns, squeeze=False)
    for row, (i, *sides) in zip(axes, entries):
        _show(row[0], test.images[i], f"test {i}\n{test.label(i)}", _COLOURS["test"])
        for kind, start, (indices, texts) in zip(("proponent", "opponent"), (1, 1 + k), sides):
            for axis, j, text in zip(row[start:], indices, texts):
                _show(axis, train.images[j], f"{j}: {train.label(j)}\n{text}", _COLOURS[kind])
    figure.suptitle(
        "test example  |  proponents: without them its loss would rise  |  "
        "opponents: without them it would fall",
        fontsize=9,
    )
    return figure


def _show(axis, image, title, colour):
    image = np.squeeze(channels_last(image))
    low, high = float(image.min()), float(image.max())
    axis.imshow((image - low) / ((high - low) or 1), cmap="gray_r" if image.ndim == 2 else None)
    axis.set_title(title, fontsize=7, color=colour)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)


def _draw_table(entries, test, train):
    def describe(indices, texts):
        lines = (f"{j} ({train.label(j)})  {t}" for j, t in zip(indices, texts))
        return "\n".join(line.replace(" ()", "") for line in lines)

    cells = [
        [f"{i} ({test.label(i)})".replace(" ()", ""), describe(*top), describe(*bottom)]
        for i, top, bottom in entries
    ]
    k = len(entries[0][1][0])
    figure = new_figure(7, 0.4 + 0.24 * (k + 0.5) * len(entries))
    axis = figure.subplots()
    axis.axis("off")
    table = axis.table(
        cells,
        colLabels=["test", "proponents: index (label) score", "opponents: index (label) score"],
        colWidths=[0.16, 0.42, 0.42],
        cellLoc="left",
        bbox=[0, 0, 1, 1],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, column), cell in table.get_celld().items():
        cell.set_height(1 if row == 0 else k)
        if row and column:
            cell.get_text().set_color(_COLOURS["proponent" if column == 1 else "opponent"])
    return figure
