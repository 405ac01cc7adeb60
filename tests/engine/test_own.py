"""Weights of users' own layers, against gradients of single examples by plain tapes."""

import logging.handlers

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.kernels.unrecorded import Unrecorded
from keras_influence.engine.layers import own
from keras_influence.engine.layers.contraction import Contraction
from keras_influence.engine.layers.footprint import footprint_of
from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors.blocks import Block
from tests import truth

layers, ops = keras.layers, keras.ops
N, STEPS, WIDTH = 7, 4, 3


pytestmark = pytest.mark.usefixtures("scores_by_their_kernel")


class Added(layers.Layer):
    """Positions that are added to what each example has, from inside and from outside."""

    def __init__(self, outside=False, **options):
        super().__init__(**options)
        self.outside = outside

    def build(self, shape):
        lead = () if self.outside else (1,)
        self.table = self.add_weight(shape=(*lead, *shape[1:]))

    def call(self, x):
        return self.table + 0.0 if self.outside else x + self.table


class Token(layers.Layer):
    """One step more, the same for all examples."""

    def build(self, shape):
        self.token = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, WIDTH))
        return ops.concatenate([token, x], axis=1)


class Bent(layers.Layer):
    """Not linear in its weights, which are not all in one matrix."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 2))
        self.b = self.add_weight(shape=(2,))
        self.rate = self.add_weight(shape=())
        self.back = self.add_weight(shape=(2, 2, WIDTH))

    def call(self, x):
        h = ops.tanh(ops.matmul(x, self.w) + self.b) * ops.exp(self.rate)
        return ops.einsum("bti,ijk->btk", h, self.back) * self.rate


class Around(layers.Layer):
    """A weight beside a layer's, of two inputs and a mask."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(WIDTH, "tanh")

    def build(self, shapes):
        self.inner.build(shapes[0])
        self.share = self.add_weight(shape=(WIDTH,))

    def call(self, inputs, keep=None):
        a, b = inputs
        z = self.inner(a) * self.share + (1 - self.share**2) * b
        return z * ops.expand_dims(keep, -1)


class WideOpen(layers.Dense):
    """Of another class than Keras's, so that its gradients are formed."""


class Pooled(layers.Layer):
    """A sublayer that finds a mask on what it is given."""

    def __init__(self, **options):
        super().__init__(**options)
        self.mean, self.supports_masking = layers.GlobalAveragePooling1D(), True

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.scale + self.mean(x)[:, None] * self.scale**2


def _masked(h):
    """Steps that begin with what is not positive are left out, but for the last."""
    kept = h[:, :-1] * ops.cast(h[:, :-1, :1] > 0, h.dtype)
    return Pooled()(layers.Masking()(ops.concatenate([kept, h[:, -1:]], 1)))


def _low_rank(h):
    layer = layers.Dense(WIDTH)
    z = layer(h)
    layer.enable_lora(2)
    return z


def _twice(h):
    layer = Bent()
    return layer(h) + layer(ops.sin(h))


# What is done to (b, STEPS, WIDTH), and how many layers have weights of their own.
CASES = {
    "bent": (lambda h: Bent()(h), 3),
    "around": (lambda h: Around()([h, ops.sin(h)], keep=h[..., 0]), 1),
    "added outside": (lambda h: h + Added(outside=True)(h), 1),
    "added inside, token, slopes": (
        lambda h: layers.PReLU(shared_axes=[1])(Token()(Added()(h))),
        3,
    ),
    "called twice": (_twice, 3),
    "masked": (_masked, 1),
    "LoRA": (_low_rank, 2),
}
LESS = [name for name in CASES if name not in ("bent", "around", "LoRA")]


def _model(name, outputs=1):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((STEPS, 2))
    h = CASES[name][0](layers.Dense(WIDTH)(inputs))
    # Steps count differently, and each twice.
    h = layers.Flatten()(ops.concatenate([ops.sin(h), h**2], 1))
    model = keras.Model(inputs, layers.Dense(outputs)(h))
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(4).normal(size=v.shape))
    model.compile("sgd", "mse")
    return model


def _data(rng, outputs=1):
    x, y = rng.normal(size=(N, STEPS, 2)), rng.normal(size=(N, outputs))
    return x, y, rng.uniform(0.5, 2, N)


def _of_losses(model, data):
    x, y, w = data
    return truth.gradients_of_each(model, x, lambda z, i: w[i] * tf.reduce_mean((z[0] - y[i]) ** 2))


@pytest.mark.slow_cases("added inside, token, slopes", "called twice")
@pytest.mark.parametrize("name", CASES)
def test_examples_are_scored_layer_by_layer(name, rng):
    model, data = _model(name, 2), _data(rng, 2)
    expected = _of_losses(model, data)
    problem = Problem(model, data, batch_size=4)
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert scorer.fast
    assert truth.relative_error(found, expected) < 1e-10
    v = rng.normal(size=(3, expected.shape[1]))
    assert truth.relative_error(problem.scores(v), v @ expected.T / N) < 1e-10
    # Alone a vector is not taken through formed gradients, where a layer is linear.
    contraction = Contraction(problem.objective)
    about = problem.facts.own(), tf.constant(v[:1])
    alone = [contraction.scores(batch, *about).numpy() for batch in problem.train]
    assert truth.relative_error(np.concatenate(alone), expected @ v[:1].T) < 1e-10


@pytest.mark.slow_cases(*LESS)
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_second_moments_of_single_examples(name, rng):
    model, (x, y, w) = _model(name), _data(rng)
    g = truth.gradients_of_each(model, x, lambda z, i: z[0, 0]) * np.sqrt(2 * w / N)[:, None]
    problem = Problem(model, (x, y, w), batch_size=3)
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    assert sorted(np.concatenate([b.positions.array.ravel() for b in blocks])) == list(
        range(g.shape[1])
    )
    assert all(isinstance(block, Block) for block in blocks)
    mine = [block for block in blocks if block.name.endswith("_own")]
    assert len(mine) == CASES[name][1]
    for block in blocks:
        part = g[:, block.positions.array]
        bases = block.q_inputs, block.q_outputs
        expected = np.sum((bases[0].T @ part @ bases[1]) ** 2, 0)
        # Keras's own LoRA has its weights in float32.
        rtol, atol = (1e-5, 1e-9) if name == "LoRA" else (1e-8, 1e-12)
        np.testing.assert_allclose(block.eigenvalues, expected, rtol=rtol, atol=atol)
        for basis, moment in zip(bases, ("nko,njo->kj", "nko,nkp->op")):
            if block.name.endswith("_own"):
                turned = basis.T @ np.einsum(moment, part, part) @ basis
                np.testing.assert_allclose(
                    turned, np.diag(np.diag(turned)), atol=rtol * turned.max()
                )


def test_contributions_of_examples_make_up_the_whole_matrix(rng):
    """With them all no iteration is left; the answer is that of the dense matrix."""
    model, train = _model("around"), _data(rng)
    method = ki.CG(1e-9, preconditioner=ki.Woodbury(100))
    scores = ki.influence(model, train, train, method=method, damping=0.1)
    assert scores.passes <= 3
    plain = ki.influence(model, train, train, method="direct", damping=0.1)
    assert truth.relative_error(np.asarray(scores), np.asarray(plain)) < 1e-7


# ---- layers that do not show what they do to single examples


class Mixed(layers.Layer):
    """Rows of its first input that are no examples: each has several."""

    def build(self, shapes):
        self.w = self.add_weight(shape=(shapes[0][-1], WIDTH))

    def call(self, inputs):
        folded, x = inputs
        return x + ops.reshape(ops.matmul(folded, self.w), (-1, STEPS, WIDTH))


class Turned(layers.Layer):
    """Given steps first, and examples second."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], WIDTH))

    def call(self, x):
        return ops.sin(ops.matmul(x, self.w))


class Called(layers.Layer):
    """Something that cannot be vectorised."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], WIDTH))

    def call(self, x):
        kinds = tf.unique(tf.cast(tf.reshape(x[..., 0] > 0, [-1]), tf.int32))[0]
        return tf.cast(tf.reduce_sum(kinds) > -1, x.dtype) * ops.sin(ops.matmul(x, self.w))


def _across(h):
    return ops.transpose(Turned()(ops.transpose(h, (1, 0, 2))), (1, 0, 2))


HIDDEN = {
    "several rows an example": lambda h: Mixed()([ops.reshape(h, (-1, WIDTH)), h]),
    "steps first": _across,
    "all rows folded": lambda h: ops.reshape(
        Turned()(ops.reshape(h, (-1, WIDTH))), (-1, STEPS, WIDTH)
    ),
    "not vectorised": lambda h: Called()(h),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_layer_that_hides_its_examples_is_taken_the_plain_way(name, rng, monkeypatch, caplog):
    monkeypatch.setitem(CASES, name, (HIDDEN[name], 0))
    model, data = _model(name), _data(rng)
    expected = _of_losses(model, data)
    problem = Problem(model, data, batch_size=4)
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert not scorer.fast
    assert truth.relative_error(found, expected) < 1e-10
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    outside = [block for block in blocks if getattr(block, "outside", False)]
    assert [block.positions.size for block in outside] == [WIDTH**2]
    assert not caplog.records


class Scanned(layers.Layer):
    """A loop whose second derivative cannot be vectorised."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],) * 2, name="kernel")

    def call(self, x):
        steps = tf.transpose(x, (1, 0, 2))
        start = tf.zeros_like(x[:, 0])
        return tf.scan(lambda state, step: tf.tanh(state @ self.kernel + step), steps, start)[-1]


def test_what_becomes_a_loop_is_no_error_of_the_users(rng):
    """TensorFlow reports each map that it cannot make, in a thousand lines; the answer is right."""
    model = keras.Sequential([keras.Input((3, 2)), Scanned(), layers.Dense(2)])
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(6, 3, 2)), rng.normal(size=(6, 2))
    said = logging.handlers.BufferingHandler(10**6)
    logger = tf.get_logger()
    logger.addHandler(said)
    try:
        found = ki.hvp(model, np.eye(model.count_params()), (x, y))
    finally:
        logger.removeHandler(said)
    assert [record.getMessage()[:60] for record in said.buffer] == []
    expected = truth.finite_difference_hessian(model, x, y, 1e-4)
    assert truth.relative_error(found, expected) < 1e-5


LOOPS = {
    "fori": lambda step, x: ops.fori_loop(0, 3, lambda i, z: step(z), x),
    "while": lambda step, x: ops.while_loop(
        lambda i, z: i < 3, lambda i, z: (i + 1, step(z)), (0, x)
    )[1],
    "scan": lambda step, x: ops.scan(lambda z, t: (step(z), z), x, ops.ones(3))[0],
    "none": lambda step, x: step(step(step(x))),
}


class Repeated(layers.Layer):
    """A step that is taken three times."""

    def __init__(self, way):
        super().__init__()
        self.way, self.inner = LOOPS[way], layers.Dense(2, "tanh")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.way(lambda z: z + self.inner(z), x)


@pytest.mark.parametrize("way", LOOPS)
def test_products_of_a_model_that_loops_by_itself(way, rng):
    """Its derivatives come from the graph: a tape would differentiate loops again and again while it records."""
    model = keras.Sequential([keras.Input((2,)), Repeated(way), layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 1))
    vectors = np.eye(model.count_params())
    problem = Problem(model, (x, y))
    with tf.Graph().as_default():
        from_graph = isinstance(problem.objective.recorded(), Unrecorded)
    assert from_graph == (way != "none")
    found = ki.hvp(model, vectors, (x, y))
    expected = truth.finite_difference_hessian(model, x, y, 1e-4)
    assert truth.relative_error(found, expected) < 1e-5
    with tf.GradientTape() as tape:
        outputs = model(x)[:, 0]
    parts = tape.jacobian(outputs, model.trainable_variables)
    jacobian = np.concatenate([np.reshape(part, (6, -1)) for part in parts], 1)
    found = ki.hvp(model, vectors, (x, y), curvature="gauss_newton")
    assert truth.relative_error(found, 2 * jacobian.T @ jacobian / 6) < 1e-7


def test_too_many_weights_are_taken_the_plain_way(rng, monkeypatch):
    monkeypatch.setattr(own, "_LARGEST", 3)
    model, data = _model("added outside"), _data(rng)
    problem = Problem(model, data, batch_size=4)
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    outside = [block for block in blocks if getattr(block, "outside", False)]
    assert [block.positions.size for block in outside] == [STEPS * WIDTH]
    v = rng.normal(size=(2, model.count_params()))
    expected = v @ _of_losses(model, data).T / N
    assert truth.relative_error(problem.scores(v), expected) < 1e-10


def test_weights_that_a_layer_gets_later_are_seen(rng):
    model, data = _model("bent"), _data(rng)
    layer = next(layer for layer in model.layers if isinstance(layer, Bent))
    for trainable in (False, True):
        layer.w.trainable = trainable
        model.compile("sgd", "mse")
        problem = Problem(model, data, batch_size=4)
        scorer = problem.scorer(problem.facts.own(), "train")
        found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
        assert scorer.fast
        assert truth.relative_error(found, _of_losses(model, data)) < 1e-10


def test_batches_leave_room_for_gradients_of_single_examples(rng):
    inputs = keras.Input((50,))
    model = keras.Model(inputs, layers.PReLU()(layers.Dense(3)(layers.PReLU()(inputs))))
    numbers = footprint_of(model, (rng.normal(size=(4, 50)), None, None)).numbers
    wide = keras.Model(inputs, layers.Dense(3)(WideOpen(400)(inputs)))
    few = (rng.normal(size=(4, 50)), None, None)
    assert numbers < 200 and footprint_of(wide, few).numbers >= 50 * 400 / 8


def test_the_layer_is_as_before(rng):
    model, data = _model("around"), _data(rng)
    layer = next(layer for layer in model.layers if isinstance(layer, Around))
    own_before, values = dict(vars(layer)), model.predict(data[0], verbose=0)
    Problem(model, data).curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    after = vars(layer)
    assert after.keys() == own_before.keys()
    assert all(after[key] is value for key, value in own_before.items())
    assert (model.predict(data[0], verbose=0) == values).all()


@keras.saving.register_keras_serializable("test_own")
class Projected(keras.layers.Layer):
    """A product of a sequence with weights, as users write it."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 4), initializer="glorot_uniform")

    def call(self, x):
        return keras.ops.tanh(x @ self.w)


def _examples(rng, layers, shape=(9, 5)):
    """A model of 61 examples by squared errors, the data; J, and ∂ℓ/∂z, by plain tapes."""
    inputs = keras.Input(shape)
    flat = keras.layers.Flatten()(layers(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(flat))
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(61, *shape)).astype("f"), rng.normal(size=(61, 1)).astype("f")
    rows, slopes = [], []
    for i in range(61):
        with tf.GradientTape() as tape:
            z = model(x[i : i + 1])
        gradients = tape.gradient(z, model.trainable_variables)
        rows.append(np.concatenate([np.ravel(g) for g in gradients]).astype(float))
        slopes.append(2 * (float(z[0, 0]) - y[i, 0]))
    return model, (x, y), np.array(rows), np.array(slopes)


def test_products_of_many_sequences_with_weights(rng):
    """A map over examples makes (61, 1, 9, 5) x (5, 4) of them, in which TensorFlow corrupts memory."""
    model, data, j, slopes = _examples(rng, Projected())
    found = ki.influence(model, data, data, damping=0.1, method="direct")
    g = j * slopes[:, None]
    expected = g @ np.linalg.solve(2 * j.T @ j / 61 + 0.1 * np.eye(j.shape[1]), g.T) / 61
    assert truth.relative_error(found.values, expected) < 1e-4


@pytest.mark.parametrize("kind", ["own", "attention"])
def test_products_of_many_vectors_with_a_batch_of_one(kind, rng):
    """A map over vectors makes (64, 1, 9, 4) x (4, 4) of them, where the last batch has one example."""

    def layers(x):
        if kind == "own":
            return Projected()(Projected()(x))
        x = keras.layers.Dense(4)(x)
        return keras.layers.Attention()([x, x])

    model, data, j, _ = _examples(rng, layers)
    vectors = rng.normal(size=(64, j.shape[1]))
    options = {"curvature": "gauss_newton", "batch_size": 20}
    found = ki.hvp(model, vectors.T, data, **options)
    assert truth.relative_error(found, 2 * j.T @ (j @ vectors.T) / 61) < 1e-4


@keras.saving.register_keras_serializable("test_own")
class Grouped(keras.layers.Layer):
    """A convolution in two groups, as users write it; or by hand, as TensorFlow has no eager gradient of it."""

    by_hand = False

    def build(self, shape):
        self.w = self.add_weight(shape=(3, 3, shape[-1] // 2, 4))

    def call(self, x):
        pairs = [(x, self.w)]
        if self.by_hand:
            pairs = zip(tf.split(x, 2, 3), tf.split(tf.convert_to_tensor(self.w), 2, 3))
        parts = [tf.nn.conv2d(image, kernel, 1, "SAME") for image, kernel in pairs]
        return keras.ops.tanh(tf.concat(parts, 3))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


@pytest.mark.parametrize("count", [1, 2])
def test_products_of_many_vectors_with_groups_of_channels(count, rng, monkeypatch):
    """A map over filter gradients of TensorFlow's mixes the groups."""

    def layers(x):
        for _ in range(count):
            x = Grouped()(x)
        return x

    monkeypatch.setattr(Grouped, "by_hand", True)
    model, data, j, _ = _examples(rng, layers, (5, 5, 4))
    by_hand = model(data[0])
    monkeypatch.setattr(Grouped, "by_hand", False)
    assert truth.relative_error(model(data[0]), by_hand) < 1e-5
    vectors = rng.normal(size=(8, j.shape[1]))
    found = ki.hvp(model, vectors.T, data, curvature="gauss_newton")
    assert truth.relative_error(found, 2 * j.T @ (j @ vectors.T) / 61) < 1e-4
