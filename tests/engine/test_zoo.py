"""Every kind of layer and construction: products and scores against finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from tests import truth
from tests.zoo import LARGE, SLOW, ZOO

pytestmark = pytest.mark.filterwarnings("ignore::keras_influence.ObjectiveWarning")


def _outputs(model, x, theta):
    truth.set_flat(model, theta)
    return np.concatenate([np.reshape(o, -1) for o in tf.nest.flatten(model(x, training=False))])


def _loss_slope(model, x, y, z, like):
    """∂L/∂z at outputs z, given as one vector, with the weights held fixed."""
    sizes = np.cumsum([int(np.prod(o.shape)) for o in tf.nest.flatten(like)])[:-1]
    parts = [
        tf.constant(part.reshape(o.shape))
        for part, o in zip(np.split(z, sizes), tf.nest.flatten(like))
    ]
    with tf.GradientTape() as tape:
        tape.watch(parts)
        y_pred = tf.nest.pack_sequence_as(like, parts)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred)
    return np.concatenate([np.reshape(g, -1) for g in tape.gradient(loss, parts)])


def finite_difference_gauss_newton(model, x, y, v, step=1e-4):
    """Jᵀ (∂²L/∂z²) J v, J v and ∂²L/∂z² from central differences of first-order quantities."""
    theta = truth.get_flat(model)
    try:
        pushed = (
            8 * (_outputs(model, x, theta + step * v) - _outputs(model, x, theta - step * v))
            - _outputs(model, x, theta + 2 * step * v)
            + _outputs(model, x, theta - 2 * step * v)
        ) / (12 * step)
    finally:
        truth.set_flat(model, theta)
    like = model(x, training=False)
    z = _outputs(model, x, theta)
    slopes = [_loss_slope(model, x, y, z + t * step * pushed, like) for t in (1, -1, 2, -2)]
    bent = (8 * (slopes[0] - slopes[1]) - slopes[2] + slopes[3]) / (12 * step)
    with tf.GradientTape() as tape:
        outputs = tf.concat(
            [tf.reshape(o, [-1]) for o in tf.nest.flatten(model(x, training=False))], 0
        )
    variables = [w.value for w in model.trainable_variables]
    gradients = tape.gradient(outputs, variables, output_gradients=tf.constant(bent))
    shapes = [w.shape for w in variables]
    return np.concatenate(
        [
            np.zeros(s).ravel() if g is None else tf.convert_to_tensor(g).numpy().ravel()
            for g, s in zip(gradients, shapes)
        ]
    )


def _penalty_hvp(model, x, v, step=1e-4):
    """∂²R/∂θ² v, with R what `model.losses` adds up to."""
    theta = truth.get_flat(model)

    def at(t):
        truth.set_flat(model, theta + t * step * v)
        with tf.GradientTape() as tape:
            model(x, training=False)
            penalty = tf.add_n(model.losses) if model.losses else tf.constant(0.0)
        gradients = tape.gradient(penalty, [w.value for w in model.trainable_variables])
        return np.concatenate(
            [
                np.zeros(int(np.prod(w.shape))) if g is None else np.reshape(g, -1)
                for g, w in zip(gradients, model.trainable_variables)
            ]
        )

    try:
        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
    finally:
        truth.set_flat(model, theta)


def _error(found, exact, sizes):
    """The relative error, of the worst part of these sizes."""
    parts = [np.split(vector, np.cumsum(sizes)[:-1]) for vector in (found, exact)]
    return max(truth.relative_error(a, b) for a, b in zip(*parts))


# Up to Keras 3.13 an activity regulariser is a sum over the batch, so that the batches are part
# of the objective: there the finite differences of the whole data are those of one batch.
SUMMED_PER_BATCH = {"activity regulariser"} if keras.__version__ < "3.14" else set()


@pytest.mark.each_case
@pytest.mark.slow_cases(*SLOW)
@pytest.mark.parametrize("name", ZOO)
def test_products_and_scores(name, rng):
    make, data = ZOO[name]
    model, (x, y) = make(), data(rng)
    batch_size = 6 if name in SUMMED_PER_BATCH else 4
    size = len(truth.get_flat(model))
    v = rng.normal(size=(size, 2))
    train = (x, y)
    # Layers that stand side by side are right each by itself.
    sizes = [sum(v.numpy().size for v in layer.trainable_variables) for layer in model.layers]
    parts = [n for n in sizes if n] if name.startswith("side by side") else [size]

    hessian = ki.hvp(model, v, train, batch_size=batch_size)
    gauss_newton = ki.hvp(model, v, train, batch_size=batch_size, curvature="gauss_newton")
    for j in range(2):
        exact = truth.finite_difference_hvp(model, x, y, v[:, j])
        assert _error(hessian[:, j], exact, parts) < (1e-6 if name == "transformer block" else 1e-7)
        exact = finite_difference_gauss_newton(model, x, y, v[:, j])
        exact = exact + _penalty_hvp(model, x, v[:, j])
        assert _error(gauss_newton[:, j], exact, parts) < 1e-6
    if name not in LARGE:
        assert truth.relative_error(ki.hvp(model, v[:, 0], train), hessian[:, 0]) < 1e-9

    def row(structure, i):
        return tf.nest.map_structure(lambda a: a[[i]], structure)

    def example_gradient(i):
        zero = np.zeros(1) if np.ndim(tf.nest.flatten(y)[0]) == 1 else np.zeros((1, 1))
        one, label = row(x, i), row(y, i)
        rest = truth.gradient(model, one, label, sample_weight=zero)
        # Of the activity regulariser the rest is the example's; the model has no other penalty.
        return truth.gradient(model, one, label) - rest, rest * (name == "activity regulariser")

    g, added = (np.array(part) for part in zip(*(example_gradient(i) for i in range(6))))
    # A sum over the batch counts n times as much in the objective as a mean.
    trained = g + (6 if name in SUMMED_PER_BATCH else 1) * added
    g = g + added
    # With huge damping A is λI up to 1e-12, and λ n · influence is the matrix of products.
    plain = ki.CG(preconditioner=None)
    test = (row(x, 0), row(y, 0)), tuple(tf.nest.map_structure(lambda a: a[:2], t) for t in train)
    for count, some in enumerate(test, 1):
        if count == 2 and name in LARGE:
            continue
        scores = ki.influence(
            model, some, train, damping=1e13, method=plain, curvature="gauss_newton", batch_size=4
        )
        assert truth.relative_error(scores.values * 6e13, g[:count] @ trained.T) < 1e-8


class WrittenOut(keras.layers.Layer):
    """What LoRA computes, in float64: Keras keeps LoRA's own two kernels in float32."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 5), trainable=False)
        self.bias = self.add_weight(shape=(5,))
        self.a = self.add_weight(shape=(4, 2))
        self.b = self.add_weight(shape=(2, 5))

    def call(self, x):
        return keras.ops.tanh(x @ (self.kernel + self.a @ self.b) + self.bias)


def test_lora_adapters_are_the_parameters(rng):
    inputs, dense = keras.Input((4,)), keras.layers.Dense(5, "tanh")
    lora = keras.Model(inputs, keras.layers.Dense(3)(dense(inputs)))
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(rng.normal(size=(2, 5)))
    written = keras.Model(inputs, keras.layers.Dense(3)(WrittenOut()(inputs)))
    for model in (lora, written):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for twin, original in zip(
        written.layers[1].weights,
        (dense.bias, dense.lora_kernel_a, dense.lora_kernel_b, dense._kernel),
    ):
        twin.assign(original)
    for twin, original in zip(written.layers[2].weights, lora.layers[2].weights):
        twin.assign(original)
    train = x, y = rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    assert [v.path.split("/")[-1] for v in lora.trainable_variables][:3] == [
        "bias", "lora_kernel_a", "lora_kernel_b"
    ]  # fmt: skip
    v = rng.normal(size=len(truth.get_flat(lora)))
    exact = truth.finite_difference_hvp(written, x, y, v)
    assert truth.relative_error(ki.hvp(lora, v, train), exact) < 1e-6


@pytest.mark.slow_cases("side by side: normalisations", "Conv2D")
@pytest.mark.parametrize("name", ["Conv2D", "side by side: normalisations", "several outputs"])
def test_run_eagerly_and_jit_compile_do_no_harm(name, rng):
    make, data = ZOO[name]
    model, train = make(), data(rng)
    v = rng.normal(size=len(truth.get_flat(model)))
    expected = ki.hvp(model, v, train)
    for setting in ({"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}):
        weights = {"kind": 1.0, "size": 0.25} if isinstance(model.loss, dict) else None
        model.compile("sgd", model.loss, loss_weights=weights, **setting)
        assert truth.relative_error(ki.hvp(model, v, train), expected) < 1e-9
    tf.config.run_functions_eagerly(True)
    try:
        assert truth.relative_error(ki.hvp(model, v, train), expected) < 1e-9
    finally:
        tf.config.run_functions_eagerly(False)


def test_the_same_call_gives_the_same_bits(rng):
    make, data = ZOO["Conv2D"]
    model, train = make(), data(rng)
    first, second = (ki.influence(model, train, train, damping=1.0).values for _ in range(2))
    assert (first == second).all()


def test_memory_of_the_kernels_goes_with_the_model(rng):
    import gc
    import weakref

    make, data = ZOO["Dense tanh"]
    model = make()
    ki.influence(model, data(rng), data(rng), damping=1.0)
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None
