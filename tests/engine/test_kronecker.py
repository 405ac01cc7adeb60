"""EK-FAC's blocks against the dense Gauss-Newton matrix, and what is made of them."""

import concurrent.futures

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC, TwoLevel
from keras_influence.engine.layers import matrix_part, moment
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.problem import Problem
from keras_influence.linalg.eigenvectors import eigenvectors, eigenvectors_of_rows
from keras_influence.linalg.factors.blocks import Block
from keras_influence.linalg.factors.kronecker import Kronecker
from keras_influence.linalg.operators import Damped
from tests import truth
from tests.linalg.matrices import dense_solve
from tests.pool import pooled

layers = keras.layers
N = 24


# name: (input shape, network up to the last, scalar Dense layer)
NETWORKS = {
    "linear": ((5,), lambda x: x),
    "dense": ((5,), lambda x: layers.Dense(6, "tanh")(x)),
    "by keyword": ((5,), lambda x: layers.Dense(6, "tanh")(inputs=x)),
    "no bias": ((5,), lambda x: layers.Dense(6, "tanh", use_bias=False)(x)),
    "positions": ((4, 3), lambda x: layers.Flatten()(layers.Dense(5, "tanh")(x))),
    "embedded positions": ((4, 3), lambda x: layers.Flatten()(Positions()(x))),
    "conv": ((6, 6, 2), lambda x: layers.Flatten()(layers.Conv2D(3, 3, activation="tanh")(x))),
    "conv same, strides": (
        (7, 6, 2),
        lambda x: layers.Flatten()(layers.Conv2D(3, (3, 2), strides=2, padding="same")(x)),
    ),
    "conv dilated": (
        (7, 7, 2),
        lambda x: layers.Flatten()(layers.Conv2D(2, 3, dilation_rate=2, activation="tanh")(x)),
    ),
    "conv1d causal": (
        (8, 2),
        lambda x: layers.Flatten()(layers.Conv1D(3, 3, padding="causal", dilation_rate=2)(x)),
    ),
    "conv3d": ((4, 4, 4, 1), lambda x: layers.Flatten()(layers.Conv3D(2, 2, strides=2)(x))),
    "einsum": (
        (4, 3),
        lambda x: layers.Flatten()(
            layers.EinsumDense("abc,cde->abed", (4, 2, 5), bias_axes="ed", activation="tanh")(x)
        ),
    ),
    "attention": (
        (4, 6),
        lambda x: layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 3)(x, x)),
    ),
    "embedding": (
        (10,),
        lambda x: layers.GlobalAveragePooling1D()(layers.Embedding(7, 4)(x)),
    ),
    "called twice": ((5,), lambda x: _twice(layers.Dense(5, "tanh"), x)),
    "conv transposed": (
        (3, 4, 2),
        lambda x: layers.Flatten()(layers.Conv2DTranspose(3, 3, 2, activation="tanh")(x)),
    ),
    "conv transposed same": (
        (5, 2),
        lambda x: layers.Flatten()(layers.Conv1DTranspose(3, 3, 2, padding="same")(x)),
    ),
    "depthwise": (
        (6, 7, 3),
        lambda x: layers.Flatten()(
            layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2)(x)
        ),
    ),
    "depthwise dilated": (
        (7, 7, 2),
        lambda x: layers.Flatten()(layers.DepthwiseConv2D((2, 3), dilation_rate=2)(x)),
    ),
    "depthwise 1d": ((8, 3), lambda x: layers.Flatten()(layers.DepthwiseConv1D(3)(x))),
    "grouped": ((6, 6, 4), lambda x: layers.Flatten()(layers.Conv2D(4, 3, groups=2)(x))),
    "separable": (
        (7, 7, 3),
        lambda x: layers.Flatten()(
            layers.SeparableConv2D(4, 3, 2, "same", depth_multiplier=2, activation="tanh")(x)
        ),
    ),
    "separable 1d": (
        (8, 3),
        lambda x: layers.Flatten()(layers.SeparableConv1D(4, 3, use_bias=False)(x)),
    ),
    "layer normalisation": (
        (4, 3),
        lambda x: layers.Flatten()(layers.LayerNormalization()(layers.Dense(4)(x))),
    ),
    "normalised over two axes": (
        (4, 3),
        lambda x: layers.Flatten()(layers.LayerNormalization(axis=(1, 2))(x)),
    ),
    "batch normalisation": (
        (4, 4, 3),
        lambda x: layers.Flatten()(layers.BatchNormalization()(layers.Conv2D(4, 2)(x))),
    ),
    "batch normalisation, first axis": (
        (3, 4),
        lambda x: layers.Flatten()(layers.BatchNormalization(axis=1, scale=False)(x)),
    ),
    "group normalisation": (
        (4, 4, 4),
        lambda x: layers.Flatten()(layers.GroupNormalization(2)(x)),
    ),
    "bias that is no row": (
        (4, 3),
        lambda x: layers.Flatten()(layers.EinsumDense("abc,cd->abd", (4, 2), bias_axes="bd")(x)),
    ),
}


def _twice(layer, x):
    return layer(layer(x))


@pooled
def _model(name, scalar=True):
    shape, body = NETWORKS[name]
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    outputs = layers.Dense(1 if scalar else 3)(body(inputs))
    model = keras.Model(inputs, outputs)
    loss = "mse" if scalar else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


def _data(name, rng, scalar=True):
    shape = NETWORKS[name][0]
    x = rng.integers(0, 7, (N, *shape)) if name == "embedding" else rng.normal(size=(N, *shape))
    y = rng.normal(size=(N, 1)) if scalar else rng.integers(0, 3, N)
    return x, y, rng.uniform(0, 2, N)


def _operator(model, train, batch_size=7):
    return Problem(model, train, batch_size=batch_size).curvature("gauss_newton")


def _basis(block):
    """Q_A ⊗ Q_S, written out."""
    q_inputs = block.q_inputs if block.q_inputs.size else np.eye(block.positions.shape[0])
    return np.kron(q_inputs, block.q_outputs)


def _diagonal_in_basis(block, dense):
    """diag((Q_A ⊗ Q_S)ᵀ G (Q_A ⊗ Q_S)) of the block's part of a dense G."""
    part, basis = block.positions.array.ravel(), _basis(block)
    diagonal = np.einsum("ij,ij->j", basis, dense[np.ix_(part, part)] @ basis)
    return diagonal.reshape(block.eigenvalues.shape)


def _is_right(block, dense):
    """Whether a block is that of a dense G: its diagonal in the basis, or the whole of channels."""
    if isinstance(block, Block):
        for q in (block.q_inputs, block.q_outputs):
            assert q.T @ q == pytest.approx(np.eye(q.shape[1]), abs=1e-10)
        expected = _diagonal_in_basis(block, dense)
        return block.eigenvalues == pytest.approx(expected, rel=1e-8, abs=1e-10)
    parts = zip(block.positions.array, block.vectors, block.eigenvalues)
    found = [(part, (q * values) @ q.T) for part, q, values in parts]
    return all(m == pytest.approx(dense[np.ix_(p, p)], rel=1e-8, abs=1e-10) for p, m in found)


@pytest.mark.slow_cases("grouped", "separable 1d", "conv transposed same")
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_are_the_diagonal_in_the_basis(name, float64, rng):
    """With one output a pseudo-gradient is ± the gradient of it: no noise is left."""
    model = _model(name)
    operator = _operator(model, _data(name, rng))
    dense = operator.to_dense()
    blocks = operator.network.kronecker(pseudo_gradients=1, seed=0)
    covered = np.concatenate([b.positions.array.ravel() for b in blocks])
    assert sorted(covered) == list(range(operator.size))
    assert not any(getattr(block, "outside", False) for block in blocks)
    assert all(_is_right(block, dense) for block in blocks)


@pytest.mark.parametrize("name", ["conv", "called twice"])
def test_examples_that_do_not_fit_together_are_taken_in_slices(name, float64, rng, monkeypatch):
    monkeypatch.setattr(matrix_part, "_NUMBERS", 1)
    operator = _operator(_model(name), _data(name, rng))
    blocks = operator.network.kronecker(pseudo_gradients=1, seed=0)
    dense = operator.to_dense()
    assert all(_is_right(block, dense) for block in blocks)


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("numbers", [2**24, 1])
def test_bases_are_of_all_inputs_whole_or_in_slices(numbers, batch_size, float64, rng, monkeypatch):
    """Those of Σ a aᵀ by NumPy, a the input and a one for the bias."""
    monkeypatch.setattr(matrix_part, "_NUMBERS", numbers)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    x = rng.normal(size=(23, 4)) * [1, 2, 3, 4]
    problem = Problem(model, (x, rng.normal(size=(23, 3))), batch_size=batch_size)
    (block,) = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    a = np.hstack([x, np.ones((23, 1))])
    turned = block.q_inputs.T @ (a.T @ a) @ block.q_inputs
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-9 * np.abs(turned).max()


class _Scaled(layers.Layer):
    """A user's own dense layer, without a bias."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, x):
        return x @ self.w


WIDE = {
    "dense": ((70,), lambda: layers.Dense(3, "tanh")),
    "convolution": ((3, 3, 40), lambda: layers.Conv2D(3, 2, activation="tanh")),
    "own": ((70,), _Scaled),
    "very wide": ((70,), lambda: layers.Dense(3, "tanh")),
}


@pytest.mark.parametrize("name", WIDE)
def test_of_few_examples_bases_are_as_narrow_as_they_are(name, float64, rng, monkeypatch):
    """Outside of them the matrix is what the regulariser makes it; with one output no noise is left."""
    if name == "very wide":
        monkeypatch.setattr(moment, "LARGEST", 40)
    shape, layer = WIDE[name]
    l2 = keras.regularizers.L2(1 / 16)
    first = layer()
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(first(inputs))))
    (first.w if name == "own" else first.kernel).regularizer = l2
    model.compile("sgd", "mse")
    n = 5
    train = rng.normal(size=(n, *shape)), rng.normal(size=(n, 1))
    operator = _operator(model, train, batch_size=2)
    dense = operator.to_dense()
    block = next(b for b in operator.network.kronecker(1, 0) if b.positions.shape[0] >= 70)
    assert block.q_inputs.shape[1] < block.positions.shape[0] // 3
    assert _is_right(block, dense)
    part, basis = block.positions.array.ravel(), _basis(block)
    mine = dense[np.ix_(part, part)]
    others = np.eye(len(part)) - basis @ basis.T
    assert np.trace(mine @ others) == pytest.approx(block.rest * block.missing, rel=1e-8)
    # No direction outside has more, whatever the regulariser leaves out.
    assert np.linalg.eigvalsh(others @ mine @ others)[-1] <= 0.125 * (1 + 1e-8)
    v = rng.normal(size=(2, operator.size))
    found = EKFAC().solve(Damped(operator, 0.3), v).x[:, part]
    inverse = basis @ np.diag(1 / (block.eigenvalues.ravel() + 0.3)) @ basis.T
    expected = v[:, part] @ (inverse + others / (block.rest + 0.3))
    assert truth.relative_error(found, expected) < 1e-6
    solver = CG(tol=1e-10, preconditioner=TwoLevel(rank=8))
    solution = solver.solve(Damped(operator, 1e-4), v)
    assert truth.relative_error(solution.x, dense_solve(dense, v, 1e-4)) < 1e-7


@pytest.mark.slow
def test_several_outputs_are_right_on_average(float64, rng):
    model = _model("dense", scalar=False)
    operator = _operator(model, _data("dense", rng, scalar=False))
    dense = operator.to_dense()
    for block in operator.network.kronecker(pseudo_gradients=100, seed=0):
        expected = _diagonal_in_basis(block, dense)
        error = np.abs(block.eigenvalues - expected) / expected.max()
        # The standard error of 100 samples of a square, of 24 examples each, is far below √(2 / 400) of it
        # where no example has most of it.
        assert error.max() < 4 * np.sqrt(2 / 400)
        assert block.eigenvalues.sum() == pytest.approx(expected.sum(), rel=0.05)


def test_regularisers_and_sums_are_in_the_eigenvalues(float64, rng):
    inputs = keras.Input((5,))
    l2 = keras.regularizers.L2(0.3)
    model = keras.Model(inputs, layers.Dense(1, kernel_regularizer=l2)(inputs))
    for loss in ("mse", keras.losses.MeanSquaredError(reduction="sum")):
        model.compile("sgd", loss)
        operator = _operator(model, _data("linear", rng))
        (block,) = operator.network.kronecker(1, 0)
        expected = _diagonal_in_basis(block, operator.to_dense())
        assert block.eigenvalues == pytest.approx(expected, rel=1e-8)


def test_exact_where_the_matrix_is_a_kronecker_product(float64, rng):
    """Linear regression: the Gauss-Newton matrix is 2 E[a aᵀ] ⊗ 1."""
    model = _model("linear")
    x, y, _ = _data("linear", rng)
    operator = Damped(_operator(model, (x, y)), 0.1)
    v = rng.normal(size=(3, operator.size))
    solution = EKFAC().solve(operator, v)
    a = np.hstack([x, np.ones((N, 1))])
    expected = dense_solve(2 * a.T @ a / N, v, 0.1)
    assert truth.relative_error(solution.x, expected) < 1e-8
    assert solution.residual.max() < 1e-8


@pooled
def _normalised(width=6):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,))
    h = layers.Dense(width, "tanh")(inputs)
    outputs = layers.Dense(3)(layers.LayerNormalization()(h))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@keras.saving.register_keras_serializable("test_kronecker")
class Scaled(keras.Model):
    """A model with a weight of its own beside its layers'."""

    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.head = layers.Dense(6, "tanh"), layers.Dense(1)

    def build(self, shape):
        self.hidden.build(shape)
        self.head.build((None, 6))
        self.factor = self.add_weight(shape=(6,), initializer="random_normal")

    def call(self, x):
        return self.head(self.hidden(x) * (1 + self.factor))


def _custom():
    keras.utils.set_random_seed(2)
    model = Scaled()
    model.build((None, 5))
    model.compile("sgd", "mse")
    before = [v is model.factor for v in model.trainable_variables].index(True)
    start = sum(int(np.prod(v.shape)) for v in model.trainable_variables[:before])
    return model, np.arange(start, start + 6)


def test_few_weights_outside_all_layers_are_solved_exactly(float64, rng):
    model, rest = _custom()
    operator = Damped(_operator(model, (rng.normal(size=(N, 5)), rng.normal(size=(N, 1)))), 0.01)
    v = rng.normal(size=(2, operator.size))
    solution = EKFAC().solve(operator, v)
    assert solution.details["parameters_outside"] == len(rest) == 6
    expected = dense_solve(operator.to_dense()[np.ix_(rest, rest)], v[:, rest])
    assert truth.relative_error(solution.x[:, rest], expected) < 1e-9


@pytest.mark.slow
def test_of_many_weights_outside_all_layers_the_diagonal_is_right_on_average(float64, rng):
    model, rest = _custom()
    operator = _operator(model, (rng.normal(size=(N, 5)), rng.normal(size=(N, 1))), batch_size=2)
    (outside,) = (b for b in operator.network.kronecker(80, seed=0) if getattr(b, "outside", False))
    assert sorted(outside.positions.array.ravel()) == list(rest)
    expected = np.diag(operator.to_dense())[outside.positions.array]
    # 80 squares of sums over 12 batches: the standard error of their mean is 5 per cent.
    assert outside.eigenvalues == pytest.approx(expected, rel=0.15)


class Folded(keras.Model):
    """An autoencoder whose way back multiplies by the encoder's kernel, in no layer of its own."""

    def __init__(self):
        super().__init__()
        self.encoder, self.last = layers.Dense(3, "tanh"), layers.Dense(1)

    def call(self, x):
        back = keras.ops.matmul(self.encoder(x), keras.ops.transpose(self.encoder.kernel))
        return self.last(back)


def test_weights_that_are_borrowed_are_in_no_layer(float64, rng):
    keras.utils.set_random_seed(2)
    model = Folded()
    model(np.zeros((1, 5)))
    model.compile("sgd", "mse")
    operator = _operator(model, (rng.normal(size=(N, 5)), rng.normal(size=(N, 1))))
    # No part knows an example's gradient with respect to the kernel, which comes first.
    assert not operator.network.contributions(N, 1e6)
    operator, kernel = Damped(operator, 0.01), np.arange(15)
    v = rng.normal(size=(2, operator.size))
    solution = EKFAC().solve(operator, v)
    assert solution.details["parameters_outside"] == 15
    expected = dense_solve(operator.to_dense()[np.ix_(kernel, kernel)], v[:, kernel])
    assert truth.relative_error(solution.x[:, kernel], expected) < 1e-9


def _loss(name, **options):
    """Made when it is asked for: a loss has the precision of its time."""
    return lambda: getattr(keras.losses, name)(**options)


CURVED = {
    "softmax": (_loss("CategoricalCrossentropy", label_smoothing=0.1), "softmax", "softmax"),
    "logits": (_loss("SparseCategoricalCrossentropy", from_logits=True), None, "softmax"),
    "sigmoid": (_loss("BinaryCrossentropy"), "sigmoid", "diagonal"),
    "mse": (_loss("MeanSquaredError"), None, "diagonal"),
    "neither": (lambda: lambda y, p: keras.ops.logsumexp(p, -1) ** 2, None, "dense"),
}


@pytest.mark.slow_cases("sigmoid", "mse", "logits")
@pytest.mark.parametrize("name", CURVED)
def test_closed_forms_are_found_and_give_the_curvature(name, float64, rng):
    """The last layer's Gauss-Newton block, on average, for losses with and without a closed form."""
    loss, activation, root = CURVED[name]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, activation)])
    model.compile("sgd", loss())
    y = rng.integers(0, 4, N) if name == "logits" else np.eye(4)[rng.integers(0, 4, N)]
    operator = _operator(model, (rng.normal(size=(N, 3)), y, rng.uniform(0.5, 2, N)))
    (block,) = operator.network.kronecker(75, seed=1)
    assert operator._ground.objective.made(PseudoGradients)._roots == (root,)
    expected = _diagonal_in_basis(block, operator.to_dense())
    assert np.abs(block.eigenvalues - expected).max() < 4 * np.sqrt(2 / 300) * expected.max()


@pytest.mark.parametrize(("classes", "scale"), [(10, 10), (10, 100), (300, 30)])
def test_confident_models_keep_the_closed_form_in_float32(classes, scale, rng):
    """Probabilities near 0 and 1; the trace of the block against its closed form in float64."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(classes)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernel, bias = model.get_weights()
    model.set_weights([kernel * scale, bias])
    x = rng.normal(size=(64, 8)).astype("float32")
    operator = _operator(model, (x, model.predict(x, verbose=0).argmax(1)), batch_size=64)
    (block,) = operator.network.kronecker(100, seed=1)
    assert operator._ground.objective.made(PseudoGradients)._roots == ("softmax",)
    z = x.astype("float64") @ (kernel * scale).astype("float64")
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = ((1 + (x**2).sum(1)) * (1 - (p**2).sum(1))).mean()
    assert block.eigenvalues.sum() == pytest.approx(expected, rel=0.1)


def test_a_form_that_does_not_hold_for_later_data_is_given_up(float64, rng):
    """The first rows weigh nothing: whatever form holds there, it is not that of the loss."""
    model = _model("linear", scalar=False)
    x, y, _ = _data("linear", rng, scalar=False)
    w = np.concatenate([np.zeros(7), np.ones(N - 7)])
    operator = _operator(model, (x, y, w))
    (block,) = operator.network.kronecker(75, seed=1)
    assert operator._ground.objective.made(PseudoGradients)._roots == ("softmax",)
    expected = _diagonal_in_basis(block, operator.to_dense())
    assert np.abs(block.eigenvalues - expected).max() < 4 * np.sqrt(2 / 300) * expected.max()


def test_coupling_is_the_matrix_in_the_coordinates_of_the_blocks(float64, rng):
    model = _model("batch normalisation")
    operator = _operator(model, _data("batch normalisation", rng))
    factor = Kronecker(operator.network.kronecker(1, seed=0), 0.0)
    chosen = np.sort(rng.choice(operator.size, 12, replace=False))
    basis = factor.turned(np.eye(operator.size)).T
    expected = basis @ operator.to_dense() @ basis.T
    # With one output no noise is left where all examples are asked.
    found = operator.network.coupling(factor.blocks, chosen, N, seed=0)
    assert found == pytest.approx(expected[np.ix_(chosen, chosen)], rel=1e-8, abs=1e-10)


@keras.saving.register_keras_serializable("test_kronecker")
class Positions(layers.Layer):
    """Adds an embedding of the positions, which has no axis of examples, and perhaps multiplies too."""

    def __init__(self, again=False, **options):
        super().__init__(**options)
        self.again = again

    def build(self, shape):
        self.embedding = layers.Embedding(shape[1], shape[2])
        self.embedding.build(None)

    def call(self, x):
        e = self.embedding(keras.ops.arange(x.shape[1]))
        return x + e + x * e if self.again else x + e


@keras.saving.register_keras_serializable("test_kronecker")
class Merged(layers.Layer):
    """A dense layer whose rows are the positions of all examples, and perhaps examples too."""

    def __init__(self, again=False, **options):
        super().__init__(**options)
        self.dense, self.again = layers.Dense(3, "tanh"), again

    def build(self, shape):
        self.dense.build((None, shape[-1]))

    def call(self, x):
        y = keras.ops.reshape(self.dense(keras.ops.reshape(x, (-1, x.shape[-1]))), (-1, 12))
        return self.dense(y[:, :3]) if self.again else y


BY_NO_EXAMPLE = {
    "positions": lambda x: layers.Flatten()(Positions(again=True)(x)),
    "merged": lambda x: Merged()(x),
    "merged and not": lambda x: Merged(again=True)(x),
}


@pooled
def _by_no_example(name):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Dense(1)(BY_NO_EXAMPLE[name](inputs)))
    model.compile("sgd", "mse")
    return model


@pytest.mark.slow_cases("positions-7")
@pytest.mark.parametrize("batch_size", [4, 7])
@pytest.mark.parametrize("name", BY_NO_EXAMPLE)
def test_layers_whose_first_axis_is_not_that_of_the_examples(name, batch_size, float64, rng):
    """Batches of four have as many examples as there are positions."""
    model = _by_no_example(name)
    operator = _operator(model, (rng.normal(size=(N, 4, 3)), rng.normal(size=(N, 1))), batch_size)
    blocks = operator.network.kronecker(60 if name == "positions" else 1, seed=0)
    odd = [b for b in blocks if not b.by_example]
    assert len(odd) == 1
    assert sum(b.positions.size for b in blocks) == operator.size
    if name == "positions":
        basis = Kronecker(tuple(odd), 0.0)
        part = odd[0].positions.array.ravel()
        turned = basis.turned(np.eye(len(part))) if isinstance(odd[0], Block) else np.eye(len(part))
        expected = np.diag(turned.T @ operator.to_dense()[np.ix_(part, part)] @ turned)
        # Means of hundreds of squares of sums over a batch.
        assert odd[0].eigenvalues.ravel() == pytest.approx(expected, rel=0.2)
    v = rng.normal(size=(2, operator.size))
    solver = CG(tol=1e-10, preconditioner=TwoLevel())
    solution = solver.solve(Damped(operator, 0.01), v)
    assert truth.relative_error(solution.x, dense_solve(operator.to_dense(), v, 0.01)) < 1e-8


def _uncovered(units=4):
    """A network whose parameters are in no layer that is covered."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.GRU(units, reset_after=False)(inputs))
    model.compile("sgd", "mse")
    return model


@pytest.mark.slow
def test_a_network_without_covered_layers_is_solved_as_one_block(float64, rng):
    model = _uncovered()
    operator = _operator(model, (rng.normal(size=(N, 4, 3)), rng.normal(size=(N, 4))))
    v = rng.normal(size=(2, operator.size))
    solution = EKFAC().solve(Damped(operator, 0.1), v)
    expected = dense_solve(operator.to_dense(), v, 0.1)
    assert truth.relative_error(solution.x, expected) < 1e-10
    assert solution.details["layers"] == []
    assert solution.details["parameters_outside"] == operator.size
    assert "no layer is covered" in solution.details["note"]


REFUSING = [EKFAC(), CG(preconditioner=EKFAC()), ASTRA()]


@pytest.mark.parametrize("solver", REFUSING, ids=str)
def test_a_curvature_that_examples_were_taken_out_of_is_refused(solver, rng):
    model = _normalised()
    problem = Problem(model, (rng.normal(size=(N, 5)), rng.integers(0, 3, N)))
    group = problem.train.subset([0, 1])
    without = Damped(problem.curvature("gauss_newton", group), 0.1)
    with pytest.raises(ValueError, match=r"EKFAC.*ASTRA.*CG.*order=2.*'cg'.*order=1"):
        solver.solve(without, rng.normal(size=(1, without.size)))


@pytest.mark.parametrize("solver", ["ekfac", "astra", CG(preconditioner=EKFAC())], ids=str)
def test_groups_of_the_second_order_are_not_answered_by_another_method(solver, rng):
    model = _normalised()
    train = (rng.normal(size=(N, 5)), rng.integers(0, 3, N))
    with pytest.raises(ValueError, match="EKFAC.*order=1"):
        ki.group_influence(model, train, train, [[0, 1]], order=2, method=solver)
    with pytest.raises(ValueError, match="EKFAC.*order=1"):
        ki.parameter_influence(model, [0, 1], train, order=2, method=solver)


@pytest.mark.parametrize(
    "solver",
    [
        CG(tol=1e-8, preconditioner=EKFAC()),
        CG(tol=1e-8, preconditioner=TwoLevel(20)),
        ASTRA(tol=1e-3, max_passes=2000),
    ],
)
def test_as_a_preconditioner_it_changes_no_answer(solver, float64, rng):
    model = _normalised()
    train = (rng.normal(size=(N, 5)), rng.integers(0, 3, N))
    operator = Damped(_operator(model, train), 0.1)
    v = rng.normal(size=(2, operator.size))
    solution = solver.solve(operator, v)
    expected = dense_solve(operator.to_dense(), v)
    assert solution.converged.all()
    assert truth.relative_error(solution.x, expected) < 10 * solver.tol


def test_influence_says_that_it_is_an_approximation(rng):
    model = _normalised()
    train = (rng.normal(size=(N, 5)).astype("float32"), rng.integers(0, 3, N))
    test = (train[0][:2], train[1][:2])
    scores = ki.influence(model, test, train, method="ekfac", damping=0.1)
    assert scores.curvature == "gauss_newton"
    assert "approximation" in repr(scores)
    assert scores.residual.max() > 1e-3


def test_threads_that_ask_one_model_about_other_data_do_not_meet(float64, rng):
    model = _normalised()
    data = [(rng.normal(size=(N, 5)), rng.integers(0, 3, N)) for _ in range(3)]
    operators = [_operator(model, train) for train in data]
    alone = [operator.network.kronecker(2, seed=0) for operator in operators]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        together = list(
            pool.map(lambda operator: operator.network.kronecker(2, seed=0), operators * 2)
        )
    for blocks, expected in zip(together, alone * 2):
        for block, other in zip(blocks, expected):
            assert block.eigenvalues == pytest.approx(other.eigenvalues, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("mean", [0, 300])
@pytest.mark.parametrize("rows", [0, 1, 60, 150, 700])
def test_eigenvectors_of_a_wide_layer_with_few_rows(rng, rows, mean):
    """A wide matrix of low rank is not taken as a whole, and has eigenvectors all the same.

    A mean far from 0, as activations have one, makes the largest eigenvalue larger by far.
    """
    a = (mean + rng.normal(size=(rows, 600))) * np.exp(rng.normal(size=600))
    moment = (a.T @ a).astype(np.float32)
    q = eigenvectors(moment).astype(np.float64)
    assert np.abs(q.T @ q - np.eye(600)).max() < 1e-5
    found = q.T @ moment @ q
    values = np.diag(found)
    assert np.abs(found - np.diag(values)).max() <= 1e-5 * values.max()
    expected, noise = np.linalg.svd(a)[1] ** 2, 1e-5 * values.max()
    assert np.allclose(np.sort(values)[::-1][:rows][:600], expected, rtol=1e-3, atol=noise)


@pytest.mark.parametrize("mean", [0, 300])
@pytest.mark.parametrize("rows", [1, 40, 200])
def test_eigenvectors_of_few_rows_span_these_alone(rng, rows, mean):
    a = (mean + rng.normal(size=(rows, 600))) * np.exp(rng.normal(size=600))
    a[::3] = a[0]
    q = eigenvectors_of_rows(a.astype(np.float32)).astype(np.float64)
    assert q.shape == (600, np.linalg.matrix_rank(a))
    assert np.abs(q.T @ q - np.eye(q.shape[1])).max() < 1e-5
    found = q.T @ (a.T @ a) @ q
    assert np.abs(found - np.diag(np.diag(found))).max() <= 1e-5 * found.max()
    assert np.abs(a - a @ q @ q.T).max() <= 1e-5 * np.abs(a).max()


def test_rows_of_nothing_have_one_direction():
    q = eigenvectors_of_rows(np.zeros((3, 600), np.float32))
    assert q.T @ q == pytest.approx(np.eye(1))


def test_moments_are_the_same_however_rows_are_put_together(rng):
    """Few rows and many, one after another, added up and weighed, beside all of them at once."""
    a = rng.normal(size=(60, 12)).astype(np.float32)

    def of(*parts):
        found = moment.Moment(12)
        for part in parts:
            found.add(part)
        return found

    few, many = of(a[:1], a[1:3]), of(a[3:30], a[30:])
    for total in (few + many, many + few, of(a[:30]) + of(a[30:]), of(a), of(*a[:, None])):
        (matrix,) = total.arrays
        assert matrix == pytest.approx(a.T @ a, rel=1e-5, abs=1e-4)
    assert np.concatenate(few.arrays) == pytest.approx(a[:3])
    half = 0.5 * few + 0.5 * of(a[3:4])
    rows = np.concatenate(half.arrays)
    assert rows.T @ rows == pytest.approx(a[:4].T @ a[:4] / 2, rel=1e-5, abs=1e-6)
    (matrix,) = (0.25 * many).arrays
    assert matrix == pytest.approx(a[3:].T @ a[3:] / 4, rel=1e-5, abs=1e-4)
