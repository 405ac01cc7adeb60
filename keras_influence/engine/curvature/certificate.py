"""Whether a kernel's products are those of the curvature, seen on a few examples of the data.

TensorFlow has first derivatives whose own derivatives are wrong or missing. So before a product
is believed, the same kernel is asked on a few examples:

    symmetry      uᵀ C v = vᵀ C u for random u and v
    direction     for the Hessian, H v against differences of the gradient along v
    presence      a Gauss-Newton matrix that is zero, against gradients of the outputs
    constancy     what layers add to the loss beside a Gauss-Newton matrix, as the Hessian

Where a network has kinks (ReLU, max pooling) a difference may cross one and says nothing: it
is believed only if half its step gives the same.

Layers and losses of the user's own may be wrong for examples that are not among the few, such as those of
a rare class. They are looked at one by one, row by row, on many more; see `faults`.
"""

import numpy as np

from keras_influence.checksums import fingerprint_of_weights, quick_fingerprint
from keras_influence.engine.data import rows
from keras_influence.engine.kernels.curved import is_curved_in_weights
from keras_influence.engine.layers.culprit import culprit
from keras_influence.engine.layers.faults import LOSS, Faults, has_own_loss, own_layers
from keras_influence.engine.loss.looks import beside
from keras_influence.engine.loss.refusals import computing
from keras_influence.engine.passes.passes import total
from keras_influence.errors import CurvatureWarning, explained, warn
from keras_influence.linalg.sweeps import overlaps, row_norms

_SEED = 1_703
# Tolerances for weights of 4 and of 8 bytes: agreement of differences with each other, and with
# the product, relative to their size. Wrong derivatives miss by a tenth and more.
_AGREE = {4: 1e-2, 8: 1e-5}
_MISS = {4: 5e-2, 8: 1e-3}
_STEP = {4: 3e-3, 8: 1e-4}
# Examples on which the user's own layers and losses are looked at, and batches that they are taken from, about.
_MOST, _BATCHES = 4096, 128


class WrongProductError(ValueError):
    """A product with the curvature is not what differences of the gradient say."""

    anchor = "wrong-derivative"
    __str__ = explained


def certify(objective, few, weight, product, many, differences):
    """Raise unless `product` is right on a few of the examples.

    Args:
        objective: an `Objective`.
        few: a few examples from all of the data, as a batch.
        weight: the `Weighting` of the objective.
        product: a function of (batch, weight, rows) that gives rows, the kernel.
        many: whether to ask it for two vectors at once, as another kernel is then traced.
        differences: whether it is the Hessian, of which gradients are the antiderivative.

    Raises:
        WrongProductError: it is not, with the layer where that can be found.
    """
    size = max(objective.parameters.dtype.size, 4)
    shape, dtype = (2, objective.parameters.size), np.float64 if size == 8 else np.float32
    pair = np.random.default_rng(_SEED).standard_normal(shape, dtype)
    pair /= row_norms(pair).astype(dtype)[:, None]
    inner, lengths, first = [], [], None
    for part in [pair] if many else [pair[:1], pair[1:]]:
        # One at a time: of large networks each is as long as the weights.
        image = np.asarray(product(few, weight, part))
        inner.append(overlaps(image, pair))
        lengths.append(row_norms(image))
        if differences and first is None:
            first = image[0].copy()
    inner, lengths = np.concatenate(inner), np.concatenate(lengths)
    if not np.isfinite(inner).all():
        return  # The solver says so, with a way out.
    scale = lengths.max() / np.sqrt(objective.parameters.size)
    wrong = abs(inner[0, 1] - inner[1, 0]) > 10 * _MISS[size] * scale
    if differences and not wrong:
        wrong = _misses(objective, few, weight, pair[0], first, size)
    if not differences and (wrong or not lengths.any()):
        wrong = is_curved_in_weights(objective, few, weight)
    if wrong:
        layer = culprit(objective, few)
        raise WrongProductError(_message(layer and f"the layer {layer}"))


def certify_added(objective, few, weight, product):
    """Warn where what layers add to the loss holds part of itself for constant.

    Args:
        objective, few, product: as for `certify`.
        weight: the `Weighting` of what is added alone.
    """
    size = max(objective.parameters.dtype.size, 4)
    v = np.random.default_rng(_SEED).standard_normal(objective.parameters.size)
    v = (v / np.linalg.norm(v)).astype(np.float64 if size == 8 else np.float32)
    image = np.asarray(product(few, weight, v[None]))[0]
    if _misses(objective, few, weight, v, image, size):
        _warn_of_constants("what layers add to the loss by `add_loss`")


def certify_own(ground, batches, together, differences):
    """Raise unless layers and losses of the user's own have right derivatives on many examples of all data.

    Args:
        ground: a `Ground`.
        batches: all of the training data, as `Batches`.
        together: so many examples at a time, at most.
        differences: as for `certify`.

    Raises:
        WrongProductError: they have not, with the layer. Of a loss that holds part of itself for constant
            the Gauss-Newton matrix is what it is of that loss: it is warned of.
    """
    model = ground.objective.model()
    if not (own_layers(model) or has_own_loss(model)):
        return
    # Once for all calls with the same weights and examples, as far as a few of these tell.
    about = batches.n, quick_fingerprint(ground.few), fingerprint_of_weights(model.weights)
    if ground.objective.looked_at.get(differences) == about:
        return
    if total(_looked_at, ground, batches, len(batches), together, differences)[0]:
        _warn_of_constants("the loss in the outputs")
    ground.objective.looked_at[differences] = about


def _warn_of_constants(where):
    warn(
        f"The slope of {where} changes otherwise than its own derivative says, as where "
        "part of it is under `stop_gradient`: Gauss-Newton takes that part for one that stays as it is. "
        "Scores are those of such a loss. If that part would change with the weights, write it "
        "without `stop_gradient`.",
        CurvatureWarning,
    )


def _looked_at(ground, run, count, together, differences):
    """A pass that looks; it adds up in how many parts of it the loss has another slope than its derivative says."""
    faults = Faults(ground.objective, ground.few, differences)
    with computing("train"):
        for batch in _many(run, count, together):
            where = faults.find(beside(batch, ground.few))
            if where is not None:
                raise WrongProductError(_message(where))
    return np.array([float(faults.held_in_loss)])


def _many(run, count, together):
    """Examples by chance from a run's share of `count` batches, joined as far as they can be."""
    every = max(1, count // _BATCHES)
    share = -(-_MOST // -(-count // every))
    held = []
    for number, batch in enumerate(run, run.number):
        if number % every:
            continue
        order = np.random.default_rng((_SEED, number)).permutation(rows.size(batch))[:share]
        for part in rows.split(rows.take(batch, np.sort(order)), together):
            sizes = [rows.size(t) for t in (*held, part)]
            if held and (sum(sizes) > together or rows.layout(held[0]) != rows.layout(part)):
                yield rows.joined(held)
                held = []
            held.append(part)
    if held:
        yield rows.joined(held)


def _misses(objective, few, weight, v, image, size):
    """Whether differences of the gradient along v agree with each other, and not with H v."""
    theta = np.concatenate([np.ravel(t) for t in objective.parameters.tensors()])
    step = _STEP[size] * (1 + np.linalg.norm(theta.astype(np.float64)))
    wide, narrow = (_difference(objective, few, weight, v, h) for h in (step, step / 2))
    length = np.linalg.norm(narrow)
    if not np.linalg.norm(wide - narrow) <= _AGREE[size] * max(length, np.linalg.norm(image)):
        return False
    return bool(np.linalg.norm(image - narrow) > _MISS[size] * max(length, np.linalg.norm(image)))


def _difference(objective, few, weight, v, step):
    """The derivative of the gradient along v, by differences of fourth order."""

    def at(t):
        return objective.at_ones(few, weight, t * step * v)[1]

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def _message(where):
    way_out = (
        "Write the loss without it, or ask TracIn, which needs first derivatives only."
        if where == LOSS
        else "Replace it by one whose gradient can be differentiated, or leave its weights and those "
        "before it out by `variables=`."
    )
    where = f" It is in {where}." if where else ""
    return (
        "A product with the curvature does not agree with differences of the gradient: some "
        "operation of the model or its loss has a wrong second derivative in TensorFlow, or hands on "
        "another gradient than that of its value, as `stop_gradient` and custom gradients do."
        f"{where} {way_out}"
    )
