"""What is looked at before any long work: the model, its loss, and whether data fit them."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_influence import _keras
from keras_influence.engine.loss.compiled import batch_size, structure
from keras_influence.engine.loss.smooth import SMOOTH, TEMPERATURE
from keras_influence.errors import ObjectiveWarning


def check_model(model):
    """Raise unless `model` is a built, compiled Keras model with finite trainable weights."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` should be a keras.Model. Received: {type(model).__name__}")
    if not model.built:
        raise ValueError(
            "`model` should be built. Call it on a batch, `model.build(input_shape)` or "
            "`model.fit(...)` first."
        )
    if not model.compiled:
        raise ValueError(
            "`model` should be compiled: its loss defines the influence. Call "
            "`model.compile(loss=...)` first."
        )
    if _keras.has_default_loss(model) and not model.loss and not model.losses:
        raise ValueError("`model` should be compiled with a loss: `model.compile(loss=...)`.")
    if not model.trainable_variables:
        raise ValueError("`model` should have trainable weights. Set `layer.trainable = True`.")
    for variable in model.trainable_variables:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(f"`model` has NaN or infinite values in {variable.path}.")
    _warn_about_hidden_objective(model)


def _warn_about_hidden_objective(model):
    """Training may minimise more than `compute_loss`, which is all that can be seen here."""
    if type(model).train_step is not keras.Model.train_step:
        warnings.warn(
            f"{type(model).__name__} has a `train_step` of its own. Influence is about "
            "`compute_loss`; a loss that only `train_step` knows is not in it.",
            ObjectiveWarning,
            stacklevel=6,
        )
    decay = getattr(model.optimizer, "weight_decay", None)
    if decay:
        warnings.warn(
            f"The optimizer's weight_decay={decay:g} is in no loss, so the curvature does not "
            "hold it. Put it in the model as `kernel_regularizer=keras.regularizers.L2"
            f"({decay / 2:g})`, which for SGD is the same decay, or add it to `damping`.",
            ObjectiveWarning,
            stacklevel=6,
        )


def check_loss(model, objective, batches, name, learn):
    """Compare a small batch with its examples one by one: each must count the same in both.

    Args:
        learn: set `objective.sums` and `objective.dropped_axes` from what is found.

    Raises:
        ValueError: `batches` do not fit the model, the loss ignores sample weights, or one
            example's part in it depends on the others in its batch.
    """
    head = batches.head(64)
    axes_to_try, masked = objective.checked.get(structure(head)) or _look_at(model, head, name)
    objective.masked = objective.masked or masked
    failures = []
    for axes in axes_to_try if learn else (objective.dropped_axes,):
        objective.dropped_axes = axes
        try:
            agree, why = _compare(objective, head, masked, learn)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            failures.append(
                f"`{name}` does not fit the model's loss, or the loss does not give one value per "
                f"example: {error}"
            )
            continue
        if agree:
            objective.checked[structure(head)] = ((axes,), masked)
            return
        failures.append(why)
    raise ValueError(failures[0])


def _look_at(model, batch, name):
    """`_axes_to_try`, and whether a mask reaches the output."""
    x, y, w = keras.utils.unpack_x_y_sample_weight(batch)
    y_pred = _model_output(model, x, name)
    try:
        _keras.build_compiled_loss(model, y, y_pred)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ValueError(f"`{name}` does not fit the model's loss: {error}") from error
    masked = any(getattr(t, "_keras_mask", None) is not None for t in tf.nest.flatten(y_pred))
    return _axes_to_try(model, w, y_pred), masked


def _axes_to_try(model, w, y_pred):
    """How many trailing axes of an output the loss may reduce: one as a rule, or up to all."""
    if w is not None or not _keras.has_default_loss(model):
        return (1,)
    return range(1, max(2, *(t.shape.rank for t in tf.nest.flatten(y_pred))))


def _compare(objective, head, masked, learn):
    """Whether a loss can be taken apart by example, and what to do where it cannot."""
    losses = objective.losses(head).numpy()
    if not losses.size:
        return False, (
            "The model's `compute_loss` ignores `sample_weight`, so the part of one example "
            "cannot be told. Multiply each example's loss by `sample_weight` before the mean."
        )
    if not np.isfinite(losses).all():
        return False, "The loss of some examples is NaN or infinite. Are the labels what it takes?"
    key = ("agrees", structure(head), objective.dropped_axes)
    if key in objective.checked:
        return True, ""
    # Examples with a loss near zero tell nothing. A masked loss is divided by the number of
    # unmasked steps of the whole batch, so that only a batch of one can be compared.
    chosen = np.argsort(-np.abs(losses))[: 1 if masked else 3]
    few = _rows(head, chosen)
    size = batch_size(few)
    together = objective.losses(few).numpy()
    alone = np.concatenate([objective.losses(_rows(few, [i])) for i in range(size)])
    tolerance = {"rtol": 1e-3, "atol": 1e-5 * np.abs(alone).max() + 1e-6}
    for sums in (False, True) if learn and size > 1 else (objective.sums,):
        in_few = np.allclose(together, alone * (size if sums else 1), **tolerance)
        in_head = np.allclose(losses[chosen], alone * (len(losses) if sums else 1), **tolerance)
        if in_few and (in_head or masked):
            objective.sums = sums
            if size > 1 and np.abs(alone).max() > 1e-6:
                objective.checked[key] = True
            return True, ""
    return False, (
        f"The model's loss is not a mean or sum over examples: in a batch of {len(losses)}, an "
        f"example counts {losses[chosen[0]]:.4g}, by itself {alone[0]:.4g}. Use a loss with "
        "reduction='sum_over_batch_size' that gives each example a loss of its own."
    )


def _rows(batch, rows):
    return tf.nest.map_structure(lambda t: tf.gather(t, rows), batch)


def _model_output(model, x, name):
    try:
        with keras.StatelessScope(collect_losses=True):
            return _keras.call_model(model, x)
    except Exception as error:
        raise ValueError(f"`{name}` does not fit the model's inputs: {error}") from error


def check_convex(model, objective, batches):
    """Raise where the Gauss-Newton matrix is not defined for the model's loss.

    Raises:
        ValueError: the loss is flat or not convex in the outputs.
    """
    head = batches.head(16)
    key = ("convex", structure(head))
    if key in objective.checked:
        return
    curvatures = objective.eager_output_curvatures(head)
    largest = np.abs(curvatures).max()
    if largest == 0:
        why = "has no second derivative in the model's outputs"
    elif curvatures.min() < -1e-4 * largest:
        why = "is not convex in the model's outputs"
    else:
        objective.checked[key] = True
        return
    way_out = (
        "Use curvature='auto', or compile the model with keras_influence.SmoothHinge(), "
        "which keeps its weights."
        if _keras.uses_loss(model, SMOOTH)
        else "Use curvature='hessian' with more `damping` or method='direct', or a smooth convex "
        "loss."
    )
    raise ValueError(
        f"curvature='gauss_newton' is not defined for the loss {_loss_name(model)}, which {why}. "
        f"{way_out}"
    )


def warn_about_kinks(model):
    """Say that smooth losses stand in for those that have no curvature of their own."""
    for name in _keras.uses_loss(model, SMOOTH):
        warnings.warn(
            f"The loss {name} has a kink in place of a curvature. curvature='auto' takes its "
            f"smooth version with temperature {TEMPERATURE:g} for all derivatives. For another "
            "temperature, model.compile(loss=keras_influence.SmoothHinge(t)), which keeps the "
            "weights; curvature='hessian' takes the loss as it is.",
            ObjectiveWarning,
            stacklevel=5,
        )


def _loss_name(model):
    if not _keras.has_default_loss(model):
        return f"{type(model).__name__}.compute_loss"
    names = [
        loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", loss))
        for loss in tf.nest.flatten(model.loss)
    ]
    return ", ".join(map(str, names))


def check_target(target, objective, batches):
    """Raise unless `target(x, y, y_pred)` gives one number per example.

    Raises:
        TypeError: `target` is not callable.
        ValueError: it fails, or returns something of another shape.
    """
    if not callable(target):
        raise TypeError(
            "`target` should be a function of (x, y, y_pred) that returns one number per example. "
            f"Received: {target!r}"
        )
    few = batches.head(3)
    try:
        value = tf.convert_to_tensor(objective.eager_targets(few, target))
    except Exception as error:
        raise ValueError(f"`target` failed on the test data: {error}") from error
    shape = tuple(value.shape)
    if shape not in ((batch_size(few),), (batch_size(few), 1)) or not value.dtype.is_floating:
        raise ValueError(
            f"`target` should return floats of shape (batch,), one per example. Received: "
            f"{value.dtype.name} of shape {shape} for a batch of {batch_size(few)}"
        )
