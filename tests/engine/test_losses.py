"""All of Keras's losses, every reduction, weights and masks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.conftest import set_precision
from tests.pool import pooled

losses = keras.losses


def real(rng, n):
    return rng.normal(size=(n, 3))


def positive(rng, n):
    return rng.uniform(0.5, 2, size=(n, 3))


def probabilities(rng, n):
    return truth.softmax(rng.normal(size=(n, 3)))


def one_hot(rng, n):
    return np.eye(3)[rng.integers(0, 3, n)]


def binary(rng, n):
    return rng.integers(0, 2, (n, 3)).astype(float)


def signs(rng, n):
    return 2 * binary(rng, n) - 1


def index(rng, n):
    return rng.integers(0, 3, n)


# loss -> (targets, output activation, Gauss-Newton: None or why it is not defined)
LOSSES = {
    "MeanSquaredError": (real, None, None),
    "Huber": (real, None, None),
    "LogCosh": (real, None, None),
    "SquaredHinge": (signs, None, None),
    "KLDivergence": (probabilities, "softmax", None),
    "Poisson": (positive, "softplus", None),
    "BinaryCrossentropy": (binary, "sigmoid", None),
    "BinaryCrossentropy logits": (binary, None, None),
    "CategoricalCrossentropy": (one_hot, "softmax", None),
    "CategoricalCrossentropy logits": (one_hot, None, None),
    "SparseCategoricalCrossentropy": (index, "softmax", None),
    "SparseCategoricalCrossentropy logits": (index, None, None),
    "MeanAbsoluteError": (real, None, "no second derivative"),
    "MeanAbsolutePercentageError": (positive, None, "no second derivative"),
    "Hinge": (signs, None, "no second derivative"),
    "CategoricalHinge": (one_hot, None, "no second derivative"),
    "CosineSimilarity": (real, None, "not convex"),
    "BinaryFocalCrossentropy logits": (binary, None, None),
    "CategoricalFocalCrossentropy": (one_hot, "softmax", None),
    "MeanSquaredLogarithmicError": (positive, "softplus", None),
    "CategoricalGeneralizedCrossEntropy": (index, "softmax", None),
}


@pooled
def build(name, **options):
    kind, *rest = name.split()
    if rest:
        options["from_logits"] = True
    activation = LOSSES[name][1]
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, activation)(hidden))
    model.compile("sgd", getattr(losses, kind)(**options))
    return model


@pytest.mark.parametrize("name", LOSSES)
def test_hvp_of_every_loss(name, rng):
    model = build(name)
    x, y = rng.normal(size=(7, 4)), LOSSES[name][0](rng, 7)
    v = rng.normal(size=len(truth.get_flat(model)))
    exact = truth.finite_difference_hvp(model, x, y, v, step=1e-4)
    found = ki.hvp(model, v, (x, y), batch_size=3)
    assert truth.relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton_is_semi_definite_or_refused_by_name(name, rng):
    model = build(name)
    train = rng.normal(size=(30, 4)), LOSSES[name][0](rng, 30)
    v = np.eye(len(truth.get_flat(model)))
    why = LOSSES[name][2]
    if why is None:
        eigenvalues = np.linalg.eigvalsh(ki.hvp(model, v, train, curvature="gauss_newton"))
        assert eigenvalues[0] > -1e-10 * eigenvalues[-1]
        assert eigenvalues[-1] > 0
    else:
        with pytest.raises(ValueError, match=f"the loss .*{why}"):
            ki.hvp(model, v, train, curvature="gauss_newton")


@pytest.mark.parametrize(("concave", "refused"), [(1.0, True), (0.05, False)])
def test_a_loss_that_is_concave_in_one_of_many_directions(concave, refused, rng):
    """Most directions see nothing of it; a little of it damping may outweigh."""
    signs = np.r_[-concave, np.ones(19)]

    def loss(y, z):
        return keras.ops.sum(signs * keras.ops.square(z - y), axis=-1)

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(20, use_bias=False)(inputs))
    model.compile("sgd", loss)
    train, v = (rng.normal(size=(9, 2)), rng.normal(size=(9, 20))), rng.normal(size=40)
    if refused:
        with pytest.raises(ValueError, match="the loss loss, which is not convex"):
            ki.hvp(model, v, train, curvature="gauss_newton")
        return
    exact = np.kron(train[0].T @ train[0], np.diag(2 * signs)) / 9
    found = ki.hvp(model, v, train, curvature="gauss_newton")
    assert truth.relative_error(found, exact @ v) < 1e-9


def test_the_refusal_names_the_loss(rng):
    model = build("MeanAbsoluteError")
    with pytest.raises(ValueError, match="the loss mean_absolute_error, which has no second"):
        ki.hvp(
            model, np.ones(43), (rng.normal(size=(5, 4)), real(rng, 5)), curvature="gauss_newton"
        )


def among_pairs(y, z):
    """The supervised contrastive loss: each example's class among the similarities of a batch."""
    z, y = keras.ops.normalize(z, axis=1), keras.ops.reshape(y, (-1, 1))
    same = keras.ops.cast(keras.ops.equal(y, keras.ops.transpose(y)), z.dtype)
    target = same / keras.ops.sum(same, axis=1, keepdims=True)
    similar = keras.ops.matmul(z, keras.ops.transpose(z))
    return keras.ops.mean(keras.ops.categorical_crossentropy(target, similar, from_logits=True))


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (losses.Dice(), binary),
        (losses.Tversky(), binary),
        (losses.Circle(), index),
        (among_pairs, index),  # Nothing for an example by itself.
    ],
)
def test_a_loss_that_mixes_examples_is_refused(loss, targets, rng):
    model = build("BinaryCrossentropy")
    model.compile("sgd", loss)
    train = rng.normal(size=(12, 4)), targets(rng, 12)
    with pytest.raises(ValueError, match="one value per example|not a mean or sum"):
        ki.influence(model, train, train)


def all_squares(y, p):
    """The sum of squares of a batch as one number, which does not say that it is a sum."""
    return keras.ops.sum(keras.ops.square(y - p))


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_a_loss_is_read_alike_in_any_unit(unit, rng):
    """In volts an electrode's squares are 1e-12: that is no rounding of zero."""
    x, y = rng.normal(size=(12, 3)), unit * rng.normal(size=(12, 1))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([unit * np.ones((3, 1))])
    model.compile("sgd", all_squares)
    found = ki.hvp(model, np.eye(3), (x, y))
    assert truth.relative_error(found, 2 * x.T @ x) < 1e-5
    model.compile("sgd", lambda y, p: keras.ops.var(y - p))
    with pytest.raises(ValueError, match="not a mean or sum"):
        ki.hvp(model, np.eye(3), (x, y))


@pytest.mark.parametrize("outputs", [2, 4, 8, 12])
def test_a_loss_that_is_a_mean_over_the_first_axis(outputs, rng):
    """One number for each output, of which Keras takes the mean: a mean over examples all the same.

    Also where there are as many outputs as examples in a batch, or among the few that are looked at.
    """
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, outputs))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs, use_bias=False)])
    model.compile("sgd", lambda y, p: keras.ops.mean(keras.ops.square(y - p), axis=0))
    v = rng.normal(size=3 * outputs)
    found = ki.hvp(model, v, (x, y), batch_size=outputs)
    expected = 2 / outputs * np.kron(x.T @ x / 12, np.eye(outputs)) @ v
    assert truth.relative_error(found, expected) < 1e-5
    residuals = x @ model.get_weights()[0] - y
    assert ki.losses(model, (x, y)) == pytest.approx(np.square(residuals).mean(1), rel=1e-5)


def test_a_loss_by_step_and_output_with_as_many_of_these_as_examples(rng):
    """What a loss of one number for each example has for its axes, whatever sizes are alike."""
    x, y = rng.normal(size=(8, 8, 3)), rng.normal(size=(8, 8, 8))
    model = keras.Sequential([keras.Input((8, 3)), keras.layers.Dense(8, use_bias=False)])
    expected = np.square(x @ model.get_weights()[0] - y)
    for axis in (0, (0, 1), (0, 2), 1, (1, 2), 2):
        model.compile("sgd", lambda y, p, a=axis: keras.ops.mean(keras.ops.square(y - p), axis=a))
        found = ki.losses(model, (x, y))
        assert found == pytest.approx(expected.mean((1, 2)), rel=1e-5)


def test_a_loss_of_whole_images(rng):
    """Dice per image drops three axes of its output."""
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(
        inputs, keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs)
    )
    model.compile("sgd", losses.Dice(axis=(1, 2, 3)))
    x, y = rng.normal(size=(5, 4, 4, 1)), rng.integers(0, 2, (5, 4, 4, 1)).astype(float)
    g = np.array([truth.gradient(model, x[[i]], y[[i]]) for i in range(5)])
    found = ki.influence(model, (x[:2], y[:2]), (x, y), damping=1e12, method="cg",
                         curvature="hessian", batch_size=3)  # fmt: skip
    assert truth.relative_error(found.values * 5e12, g[:2] @ g.T) < 1e-8


@pooled
def softmax_with(reduction, l2=truth.L2):
    model = truth.softmax_model.fresh(4, 3, l2)
    model.compile("sgd", losses.SparseCategoricalCrossentropy(reduction=reduction))
    return model


@pytest.mark.slow_cases("False-4", "True-20")
@pytest.mark.parametrize("batch_size", [4, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sum_is_the_sum_of_all_examples_and_one_regulariser(weighted, batch_size, rng):
    """L = Σ wᵢℓᵢ + R for the training data as one batch: n times the mean, R once."""
    x, y = rng.normal(size=(18, 4)), rng.integers(0, 3, 18)
    w = rng.uniform(0.5, 2, 18) if weighted else np.ones(18)
    model = softmax_with("sum")
    mean = truth.SoftmaxRegression(x, y, 3, 0.0, w)
    theta = truth.get_flat(model)
    penalty = np.diag(2 * truth.L2 * mean.penalty.ravel())
    hessian = 18 * mean.hessian(theta) + penalty
    train = (x, y, w) if weighted else (x, y)
    found = ki.hvp(model, np.eye(15), train, batch_size=batch_size)
    assert truth.relative_error(found, hessian) < 1e-9

    g = mean.example_gradients(theta) * w[:, None]
    exact = g[:1] @ np.linalg.solve(hessian + 0.1 * np.eye(15), g.T)
    test = tuple(t[:1] for t in train)
    found = ki.influence(model, test, train, damping=0.1, batch_size=batch_size)
    assert truth.relative_error(found.values, exact) < 1e-8

    lissa = ki.LiSSA(batch_size=6, recursion_depth=300, num_samples=3)
    v = rng.normal(size=15)
    found = ki.inverse_hvp(model, v, train, method=lissa, damping=1.0)
    assert truth.relative_error(found, np.linalg.solve(hessian + np.eye(15), v)) < 0.1


def test_no_reduction_counts_as_a_sum(rng):
    """What `fit` does with a vector of losses: its gradient is that of the sum."""
    train = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    model = softmax_with("none", 0.0)
    exact = 9 * truth.SoftmaxRegression(*train, 3, 0.0).hessian(truth.get_flat(model))
    found = ki.hvp(model, np.eye(15), train, batch_size=4)
    assert truth.relative_error(found, exact) < 1e-9


def test_a_mean_over_the_weights_is_refused_with_the_way_out(rng):
    train = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    with pytest.raises(ValueError, match="sum_over_batch_size"):
        ki.influence(softmax_with("mean_with_sample_weight"), train, train)


def test_class_weight_is_that_of_fit(rng):
    x, y = rng.normal(size=(18, 4)), rng.integers(0, 3, 18)
    weights = {0: 0.5, 1: 2.0, 2: 1.5}
    w = np.array([weights[label] for label in y])
    model = softmax_with("sum_over_batch_size")
    exact = truth.SoftmaxRegression(x, y, 3, truth.L2, w).hessian(truth.get_flat(model))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    for train in ((x, y), dataset):
        found = ki.hvp(model, np.eye(15), train, class_weight=weights)
        assert truth.relative_error(found, exact) < 1e-9


def test_weights_per_time_step(rng):
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y, w = rng.normal(size=(6, 4, 2)), rng.integers(0, 3, (6, 4)), rng.uniform(0, 1, (6, 4))
    flat = truth.SoftmaxRegression(x.reshape(24, 2), y.ravel(), 3, 0.0, w.ravel())
    exact = flat.hessian(truth.get_flat(model))
    found = ki.hvp(model, np.eye(9), (x, y, w), batch_size=4)
    assert truth.relative_error(found, exact) < 1e-9


def test_masked_steps_do_not_count(rng):
    """Keras divides by the unmasked steps: with all data in one batch, a mean over those."""
    inputs = keras.Input((4, 2))
    hidden = keras.layers.Masking(0.0)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = rng.normal(size=(6, 4, 2)), rng.integers(0, 3, (6, 4))
    x[1, 1:] = x[4, 1:] = x[2, 2:] = 0
    kept = (x != 0).any(-1)
    flat = truth.SoftmaxRegression(x[kept], y[kept], 3, 0.0)
    # The number of steps itself, to which Keras up to 3.12 adds an epsilon of 1e-7.
    exact = flat.hessian(truth.get_flat(model))
    assert truth.relative_error(ki.hvp(model, np.eye(9), (x, y)), exact) < 1e-9
    scores = ki.influence(model, (x[1:2], y[1:2]), (x, y), damping=0.1)
    g = flat.example_gradients(truth.get_flat(model))
    owner = np.repeat(np.arange(6), 4).reshape(6, 4)[kept]
    per_example = np.array([g[owner == i].sum(0) for i in range(6)])
    test = per_example[1] / (owner == 1).sum()
    train = per_example.T / kept.sum()
    expected = test @ np.linalg.solve(exact + 0.1 * np.eye(9), train)
    assert truth.relative_error(scores.values[0], expected) < 1e-8


@pytest.mark.parametrize("activation", ["softmax", keras.ops.softmax, lambda z: tf.nn.softmax(z)])
def test_with_an_ignored_class_gauss_newton_is_the_hessian_of_a_softmax_regression(activation, rng):
    """Keras loses the logits on the way to such a loss."""
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, keras.layers.Dense(3, activation)(inputs))
    model.compile("sgd", losses.SparseCategoricalCrossentropy(ignore_class=0))
    x, y = rng.normal(size=(9, 4, 2)), rng.integers(0, 3, (9, 4))
    z = np.c_[x.reshape(-1, 2), np.ones(36)][y.ravel() > 0]
    p = model(x).numpy().reshape(-1, 3)[y.ravel() > 0]
    exact = sum(np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) for a, q in zip(z, p)) / len(z)
    found = ki.operator(model, (x, y), curvature="gauss_newton").to_dense()
    assert truth.relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("layer", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_in_another_dtype_gauss_newton_is_the_hessian_of_a_logistic_regression(
    activation, layer, rng
):
    """Keras casts the output to the dtype of the loss, and loses the logits with it."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation, dtype=layer)])
    other = "float32" if layer == "float64" else "float64"
    x, y = rng.normal(size=(9, 4)), rng.integers(0, 3, 9)
    if activation == "softmax":
        model.compile("sgd", losses.SparseCategoricalCrossentropy(dtype=other))
    else:
        model.compile("sgd", losses.BinaryCrossentropy(dtype=other))
        y = np.eye(3)[y]
    z, p = np.c_[x, np.ones(9)], model(x).numpy().astype(float)
    # A binary cross-entropy is the mean over three outputs.
    bends = [
        np.diag(q * (1 - q)) / 3 if activation == "sigmoid" else np.diag(q) - np.outer(q, q)
        for q in p
    ]
    exact = sum(np.kron(np.outer(a, a), bend) for a, bend in zip(z, bends)) / 9
    found = ki.operator(model, (x, y), curvature="gauss_newton").to_dense()
    assert truth.relative_error(found, exact) < 1e-5


def test_a_loss_without_second_derivative_says_so(rng):
    @tf.custom_gradient
    def opaque(z):
        a = 1 + tf.abs(z)
        return tf.square(z), lambda d: d * tf.raw_ops.IgammaGradA(a=a, x=a)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", lambda y, z: keras.ops.mean(opaque(z - y), axis=-1))
    train = (rng.normal(size=(3, 4)), rng.normal(size=(3, 1)))
    for _ in range(2):  # Also when it is asked again.
        with pytest.raises(ValueError, match="TensorFlow cannot differentiate.*IgammaGradA"):
            ki.hvp(model, np.ones(5), train)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_another_curvature_is_advised_only_where_it_is_another(curvature, own, rng):
    class Opaque(keras.layers.Layer):
        def call(self, x):
            return tf.recompute_grad(tf.tanh)(x)

    inputs = keras.Input((4,))
    outputs = Opaque()(keras.layers.Dense(2)(inputs))
    if not own:  # What is looked at by the kernel itself, not by itself before.
        outputs = keras.layers.Lambda(tf.recompute_grad(tf.tanh))(keras.layers.Dense(2)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    train = (rng.normal(size=(3, 4)), rng.normal(size=(3, 2)))
    with pytest.raises(ValueError, match="TensorFlow cannot differentiate") as caught:
        ki.influence(model, train, train, curvature=curvature)
    assert ("curvature='gauss_newton'" in str(caught.value)) == (curvature == "hessian")


def test_a_loss_that_is_flat_for_a_few_examples_only(float64, rng):
    """Huber's, of which those that are looked at first are all outliers."""
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 1)) * 0.01
    outliers = np.linspace(0, 59, 8).astype(int)
    y[outliers] += 100
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", keras.losses.Huber(0.5))
    model.set_weights([np.full((3, 1), 1e-3)])
    inside = np.delete(x, outliers, axis=0)
    found = ki.hvp(model, np.eye(3), (x, y), curvature="gauss_newton")
    assert truth.relative_error(found, inside.T @ inside / 60) < 1e-10
    y[:] += 100
    with pytest.raises(ValueError, match="no second derivative"):
        ki.hvp(model, np.eye(3), (x, y), curvature="gauss_newton")


RARE = 1.0


def weighted_squares(y, p):
    """Squares of which those of large labels count so many times."""
    weight = keras.ops.where(y > 5, RARE, 1.0)
    return keras.ops.mean(keras.ops.cast(weight, p.dtype) * keras.ops.square(y - p), -1)


def test_a_global_that_a_loss_reads_may_change(rng, monkeypatch):
    """Where none of the few examples that are looked at first is of the rare kind."""
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 1))
    y[17] = 10.0
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", weighted_squares)
    for value in (1.0, 50.0):
        monkeypatch.setitem(globals(), "RARE", value)
        weights = np.where(y > 5, value, 1.0)
        found = ki.hvp(model, np.eye(3), (x, y))
        assert truth.relative_error(found, 2 * x.T @ (weights * x) / 60) < 1e-5


@pytest.mark.parametrize("by", ["loss_weights", "sample_weight"])
def test_a_cross_entropy_that_counts_negatively_is_refused(by, rng):
    """It is convex, but what it is multiplied by need not be positive."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [keras.layers.Dense(3, "softmax")(inputs) for _ in range(2)])
    weights = [1.0, -1.0] if by == "loss_weights" else [1.0, 1.0]
    model.compile("sgd", ["sparse_categorical_crossentropy"] * 2, loss_weights=weights)
    x, y = rng.normal(size=(12, 4)), rng.integers(0, 3, 12)
    sign = np.where(np.arange(12) % 2, 1.0, -1.0) if by == "sample_weight" else np.ones(12)
    train = x, (y, y), (sign, sign)
    with pytest.raises(ValueError, match="which is not convex"):
        ki.influence(model, (x, (y, y)), train, curvature="gauss_newton", method="ekfac")


class Sloped(keras.Model):
    """Its loss holds the slope of the output with respect to the input, as those of PINNs do."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            again = self(x)
        each = tf.square(y - y_pred) + tf.square(tape.gradient(again, x) - tf.cos(x))
        if sample_weight is not None:
            each *= tf.reshape(sample_weight, [-1, 1])
        return tf.reduce_mean(each)


def reading_a_kernel(model):
    """The loss of a contractive autoencoder: of a hidden layer's slope, by its kernel."""

    def loss(y, y_pred):
        kernel = model.layers[1].kernel
        return tf.reduce_mean(tf.square(y - y_pred), -1) + tf.reduce_sum(tf.square(kernel))

    return loss


def _with_tanh(cls, loss, rng):
    inputs = keras.Input((1,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    model = cls(inputs, keras.layers.Dense(1)(hidden))
    model.compile("sgd", loss=loss and loss(model))
    x = rng.normal(size=(12, 1))
    return model, (x, np.sin(x))


def test_a_loss_of_slopes_is_not_convex_in_the_weights(rng):
    """So it takes the Hessian, and no matrix that knows nothing of that part."""
    model, train = _with_tanh(Sloped, None, rng)
    with pytest.warns(ki.CurvatureWarning, match="outputs and the weights that it reads besides"):
        scores = ki.influence(model, train, train, damping=5.0)
    assert scores.curvature == "hessian"
    x, y = map(tf.constant, train)
    hessian = truth.finite_difference_hessian(model, x, y)
    slopes = np.array([truth.gradient(model, x[i : i + 1], y[i : i + 1]) for i in range(12)])
    exact = slopes @ np.linalg.solve(hessian + 5 * np.eye(len(hessian)), slopes.T) / 12
    np.testing.assert_allclose(scores.values, exact, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="is not convex"):
        ki.hvp(model, slopes[0], train, curvature="gauss_newton")


def test_a_penalty_does_not_make_a_flat_loss_curved(rng):
    """Where the outputs are flat, what the weights' own part has of curvature is not that of the loss."""
    inputs = keras.Input((1,))
    dense = keras.layers.Dense(1)
    model = keras.Model(inputs, dense(inputs))

    def loss(y, y_pred):
        return tf.reduce_mean(abs(y - y_pred), -1) + tf.reduce_sum(tf.square(dense.kernel))

    model.compile("sgd", loss)
    train = rng.normal(size=(12, 1)), rng.normal(size=(12, 1))
    with pytest.raises(ValueError, match="no second derivative in the model's outputs"):
        ki.hvp(model, np.ones(2), train, curvature="gauss_newton")


@pytest.mark.filterwarnings("error::keras_influence.CurvatureWarning")
@pytest.mark.parametrize("method", ["cg", "direct"])
def test_weights_that_a_loss_reads_are_in_gauss_newton(method, rng):
    """2 JᵀJ / n of the squared errors, and 2 of the penalty for each entry of the kernel."""
    model, train = _with_tanh(keras.Model, reading_a_kernel, rng)
    with tf.GradientTape() as tape:
        out = model(train[0])[:, 0]
    parts = tape.jacobian(out, model.trainable_variables)
    jacobian = np.concatenate([np.reshape(part, (12, -1)) for part in parts], 1)
    matrix = 2 * jacobian.T @ jacobian / 12 + np.diag([2.1] * 4 + [0.1] * 9)
    slopes = np.array([truth.gradient(model, *(t[i : i + 1] for t in train)) for i in range(12)])
    options = {"damping": 0.1, "curvature": "gauss_newton", "verbose": 0}
    scores = ki.influence(model, train, train, method=method, **options)
    exact = slopes @ np.linalg.solve(matrix, slopes.T) / 12
    np.testing.assert_allclose(scores.values, exact, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("error::keras_influence.CurvatureWarning")
@pytest.mark.parametrize("scale", [300.0, 1000.0])
@pytest.mark.parametrize("curvature", ["gauss_newton", "auto"])
def test_saturated_probabilities_have_a_curvature_of_nothing(scale, curvature, rng):
    """In float32 all are 0 and 1 and rounding is all that is left of it: scores are those of gradients."""
    set_precision("float32")
    x = rng.normal(size=(40, 3)) + 3 * np.eye(3)[rng.integers(0, 3, 40)]
    y = x.argmax(1)
    y[0] = (y[0] + 1) % 3
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax", use_bias=False)])
    model.set_weights([scale * np.eye(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    p = truth.softmax(scale * x)
    g = np.einsum("nd,nc->ndc", x, p - np.eye(3)[y]).reshape(40, 9)
    bent = np.einsum("nc,ce->nce", p, np.eye(3)) - np.einsum("nc,ne->nce", p, p)
    hessian = np.einsum("nd,nce,nf->dcfe", x, bent, x).reshape(9, 9) / 40
    expected = g[:2] @ np.linalg.solve(hessian + 0.1 * np.eye(9), g.T) / 40
    found = ki.influence(model, (x[:2], y[:2]), (x, y), curvature=curvature, damping=0.1)
    assert truth.relative_error(found.values, expected) < 1e-3
