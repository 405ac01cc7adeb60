"""What layers add to the loss by `add_loss` and activity regularisers, as the batch sees it."""

from keras_influence import _keras
from keras_influence.engine.data.sizes import batch_size
from keras_influence.engine.loss.looks import called, close, rows_of_batch
from keras_influence.engine.loss.terms import MEAN, SUM
from keras_influence.errors import ObjectiveWarning, warn


def what_is_added(model, few, name):
    """One of "nothing", "constant", `MEAN`, `SUM`, "mixed": see `facts.Facts`."""
    rows = list(range(batch_size(few)))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    whole = _added(model, few, rows, name)
    if whole is None:
        return "nothing"
    # Each row twice: never a batch of one, the mean stays and the sum doubles.
    twice, a, b = (_added(model, few, part, name) for part in (rows * 2, first * 2, second * 2))
    if whole == 0 == twice == a == b:
        return "nothing"
    if close(twice, whole) and close(a, whole) and close(b, whole):
        return "constant"
    if close(twice, whole) and close(whole, (len(first) * a + len(second) * b) / len(rows)):
        return MEAN
    if close(twice, 2 * whole) and close(whole, (a + b) / 2):
        return SUM
    names = [layer.name for layer in model._flatten_layers() if layer._loss_ids]
    warn(
        f"What {', '.join(names) or 'the model'} adds to the loss by `add_loss` is neither a mean "
        "nor a sum over the examples of a batch: it is in the curvature, and in no example's own "
        "part. Add the mean over the batch of one number for each example.",
        ObjectiveWarning,
    )
    return "mixed"


def _added(model, few, rows, name):
    """The sum of what is added for some rows, or None."""
    with called(model, rows_of_batch(few, rows), name):
        if not any(layer._get_own_losses() for layer in model._flatten_layers()):
            return None
        return float(_keras.added_losses(model))
