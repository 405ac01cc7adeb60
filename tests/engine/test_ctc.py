"""Second derivatives of both of TensorFlow's CTC losses, against sums over all paths."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels import primitives
from tests import truth

STEPS, CLASSES = 4, 3
# Labels without the blank, 0, and how many steps each example has.
LABELS, RUNS = [[1, 2], [1, 1], [2]], [4, 3, 2]
LONGEST = 2


def _paths(labels, steps):
    """All sequences of classes that stand for these labels: equal neighbours are one, blanks none."""
    for path in itertools.product(range(CLASSES), repeat=steps):
        if [k for k, _ in itertools.groupby(path) if k] == labels:
            yield path


def _by_paths(z, labels, runs):
    """-log of the probability of all paths together, from the definition, of (n, T, C) logits."""
    y = tf.nn.log_softmax(z)
    losses = []
    for i, (given, steps) in enumerate(zip(labels, runs)):
        sums = [tf.add_n([y[i, t, k] for t, k in enumerate(p)]) for p in _paths(given, steps)]
        losses.append(-tf.reduce_logsumexp(tf.stack(sums)))
    return tf.stack(losses)


def _written_out(labels):
    """(n, LONGEST) labels, and how many each example has."""
    rows = [[*some, *[0] * (LONGEST - len(some))] for some in labels]
    return np.array(rows, np.int32), np.array([len(some) for some in labels], np.int32)


def _dense(z, labels, runs):
    return tf.nn.ctc_loss(
        *(_written_out(labels)[0], z, _written_out(labels)[1], tf.constant(runs)),
        logits_time_major=False,
        blank_index=0,
    )


def _fused(z, labels, runs):
    """Its blank is the last class."""
    dense, counts = _written_out(labels)
    here = np.argwhere(np.arange(LONGEST) < counts[:, None])
    sparse = tf.SparseTensor(here, dense[tuple(here.T)] - 1, dense.shape)
    turned = tf.transpose(tf.roll(z, -1, axis=2), [1, 0, 2])
    return tf.compat.v1.nn.ctc_loss(sparse, turned, tf.constant(runs))


def _products(loss, z, vectors):
    """Gradient, and the Hessian times each vector, of a weighted sum; vectorised in a kernel."""
    omega = tf.range(1, z.shape[0] + 1, dtype=z.dtype)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            total = tf.reduce_sum(omega * tf.cast(loss(z), z.dtype))
        slope = inner.gradient(total, z)

    def product(v):
        return outer.gradient(slope, z, output_gradients=v)

    if tf.executing_eagerly():
        return slope, tf.stack([product(v) for v in vectors])
    return slope, tf.vectorized_map(product, vectors, warn=False)


@pytest.mark.slow_cases("fused-compiled")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("loss", "labels"),
    # The operation refuses an example without any.
    [(_dense, [*LABELS, []]), (_fused, [*LABELS, [2, 1]])],
    ids=["dense", "fused"],
)
def test_products_are_those_of_the_sum_over_all_paths(loss, labels, compiled, rng):
    runs = [*RUNS, 3]
    shape = (len(labels), STEPS, CLASSES)
    z, vectors = rng.normal(size=shape), rng.normal(size=(2, *shape))
    expected = _products(lambda z: _by_paths(z, labels, runs), tf.constant(z), tf.constant(vectors))

    def found(z, vectors):
        with primitives.replaced():
            return _products(lambda z: loss(z, labels, runs), z, vectors)

    single = tf.constant(z, tf.float32), tf.constant(vectors, tf.float32)
    for a, b in zip((tf.function(found) if compiled else found)(*single), expected):
        assert truth.relative_error(a.numpy(), b.numpy()) < 1e-5


def _fused_loss(y, z):
    here = tf.where(y > 0)
    labels = tf.SparseTensor(here, tf.gather_nd(y, here), tf.shape(y, tf.int64))
    steps = tf.fill([tf.shape(z)[0]], tf.shape(z)[1])
    z = tf.cast(tf.transpose(z, [1, 0, 2]), tf.float32)
    return tf.cast(tf.compat.v1.nn.ctc_loss(tf.cast(labels, tf.int32), z, steps), tf.float64)


LOSSES = pytest.mark.parametrize("loss", [keras.losses.CTC(), _fused_loss], ids=["dense", "fused"])


def _model(loss, rng):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    model.compile("sgd", loss)
    return model, (rng.normal(size=(4, 5, 4)), rng.integers(1, 3, (4, 2)))


def _gradient(model, x, y, shift=0.0):
    """That of TensorFlow, (p,), with `shift` added to the weights."""
    start = model.get_weights()
    flat = np.concatenate([np.ravel(w) for w in start]) + shift
    parts = np.split(flat, np.cumsum([w.size for w in start])[:-1])
    model.set_weights([part.reshape(w.shape) for part, w in zip(parts, start)])
    values = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.loss(y, model(x)))
    model.set_weights(start)
    return np.concatenate([np.ravel(g) for g in tape.gradient(loss, values)])


def _along(model, train, v, step=0.03):
    """The Hessian times v, by differences of gradients in single precision."""
    ends = [_gradient(model, *train, sign * step * v) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.slow_cases("fused")
@LOSSES
def test_products_of_a_model_agree_with_differences_of_gradients(loss, rng):
    model, train = _model(loss, rng)
    v = rng.normal(size=model.count_params())
    v /= np.linalg.norm(v)
    assert truth.relative_error(ki.hvp(model, v, train), _along(model, train, v)) < 2e-3


@pytest.mark.slow
@LOSSES
def test_a_model_is_explained(loss, rng):
    """Its loss is not convex in the outputs: by the Hessian, with enough damping."""
    model, (x, y) = _model(loss, rng)
    hessian = np.array([_along(model, (x, y), e) for e in np.eye(model.count_params())])
    damping = 0.1 - min(0.0, np.linalg.eigvalsh(hessian)[0])
    about = {"curvature": "hessian", "damping": damping}
    scores = ki.influence(model, (x, y), (x, y), verbose=0, **about)
    g = np.array([_gradient(model, x[[i]], y[[i]]) for i in range(4)])
    exact = g @ np.linalg.solve(hessian + damping * np.eye(len(hessian)), g.T) / 4
    assert truth.relative_error(np.asarray(scores), exact) < 0.02
