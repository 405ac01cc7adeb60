"""What is wrong with data or a loss, in words that name them: errors of TensorFlow's and of the user's own."""

import contextlib

import tensorflow as tf

from keras_influence.engine.loss.terms import RefusedLoss


@contextlib.contextmanager
def fitting(name, parts, y_pred):
    """Errors of a loss function as one that names the data, and what an example of them is."""
    try:
        yield
    except (TypeError, AttributeError, IndexError, ValueError, tf.errors.OpError) as error:
        if isinstance(error, RefusedLoss):
            raise
        message = f"`{name}` does not fit the model's loss: {error}"
        raise ValueError(f"{message.rstrip('.')}. {_an_example(parts, y_pred)}") from error


def _an_example(parts, y_pred):
    """The shapes of an example's labels, outputs and weight, in words."""
    _, y, w = parts
    if y is None:
        return "There are no labels: give (x, y)."
    given = {"labels": y, "outputs": y_pred, "sample_weight": w}
    shapes = [
        f"{what} of shape {' and '.join(str(tuple(t.shape[1:])) for t in tf.nest.flatten(part))}"
        for what, part in given.items()
        if part is not None
    ]
    return f"An example has {', '.join(shapes)}."


@contextlib.contextmanager
def computing(name):
    """What a kernel cannot take as an error that names the data."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        # Neither where the operation was made, nor its name in the graph, which stands last.
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
        lines = [line for line in lines if not line.startswith(("File ", "[[{{node"))] or lines
        about_labels = [line for line in lines if "label" in line.lower()]
        asked = " Are all labels in the range of the classes?" if about_labels else ""
        why = (about_labels or lines)[-1]
        raise RefusedLoss(
            f"`{name}` has examples that the model or its loss cannot take.{asked} TensorFlow says: "
            f"{why[:200]}"
        ) from error


def mixed_message(size, name, whole, mean):
    """What to say of a loss that is not its examples' losses put together."""
    return (
        f"The model's loss is not a mean or sum over examples: for {size} examples of `{name}` it "
        f"is {whole:.4g}, and the mean of their own losses {mean:.4g}. Use a loss that gives each "
        "example a value of its own (in a function of your own, a mean over the last axes only, not over "
        "the first), or for a mean over what is no padding Keras's own with `ignore_class` or a mask."
    )
