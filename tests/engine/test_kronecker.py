"""EK-FAC's blocks against the dense Gauss-Newton matrix, and what is made of them."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped
from tests import truth
from tests.linalg.matrices import dense_solve

layers = keras.layers
N = 24


# name: (input shape, network up to the last, scalar Dense layer)
NETWORKS = {
    "linear": ((5,), lambda x: x),
    "dense": ((5,), lambda x: layers.Dense(6, "tanh")(x)),
    "no bias": ((5,), lambda x: layers.Dense(6, "tanh", use_bias=False)(x)),
    "positions": ((4, 3), lambda x: layers.Flatten()(layers.Dense(5, "tanh")(x))),
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
}


def _twice(layer, x):
    return layer(layer(x))


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


def _diagonal_in_basis(block, dense):
    """diag((Q_A ⊗ Q_S)ᵀ G (Q_A ⊗ Q_S)) of the block's part of a dense G."""
    part = block.positions.ravel()
    q_inputs = block.q_inputs if block.q_inputs.size else np.eye(len(block.positions))
    basis = np.kron(q_inputs, block.q_outputs)
    diagonal = np.einsum("ij,ij->j", basis, dense[np.ix_(part, part)] @ basis)
    return diagonal.reshape(block.positions.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_are_the_diagonal_in_the_basis(name, float64, rng):
    """With one output a pseudo-gradient is ± the gradient of it: no noise is left."""
    model = _model(name)
    operator = _operator(model, _data(name, rng))
    dense = operator.to_dense()
    blocks = operator.kronecker(pseudo_gradients=1, seed=0)
    covered = np.concatenate([b.positions.ravel() for b in blocks])
    assert sorted(covered) == list(range(operator.size))
    for block in blocks:
        for q in (block.q_inputs, block.q_outputs):
            assert q.T @ q == pytest.approx(np.eye(len(q)), abs=1e-10)
        expected = _diagonal_in_basis(block, dense)
        assert block.eigenvalues == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_several_outputs_are_right_on_average(float64, rng):
    model = _model("dense", scalar=False)
    operator = _operator(model, _data("dense", rng, scalar=False))
    dense = operator.to_dense()
    for block in operator.kronecker(pseudo_gradients=400, seed=0):
        expected = _diagonal_in_basis(block, dense)
        error = np.abs(block.eigenvalues - expected) / expected.max()
        # The standard error of 400 samples of a square is at most about √(2 / 400) of it.
        assert error.max() < 4 * np.sqrt(2 / 400)
        assert block.eigenvalues.sum() == pytest.approx(expected.sum(), rel=0.05)


def test_regularisers_and_sums_are_in_the_eigenvalues(float64, rng):
    inputs = keras.Input((5,))
    l2 = keras.regularizers.L2(0.3)
    model = keras.Model(inputs, layers.Dense(1, kernel_regularizer=l2)(inputs))
    for loss in ("mse", keras.losses.MeanSquaredError(reduction="sum")):
        model.compile("sgd", loss)
        operator = _operator(model, _data("linear", rng))
        (block,) = operator.kronecker(1, 0)
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


def _normalised(width=6):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,))
    h = layers.Dense(width, "tanh")(inputs)
    outputs = layers.Dense(3)(layers.LayerNormalization()(h))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("limit", [1500, 1])
def test_the_rest_is_solved_exactly(limit, float64, rng, monkeypatch):
    monkeypatch.setattr("keras_influence.linalg.solvers.ekfac._DENSE_REST", limit)
    model = _normalised()
    train = (rng.normal(size=(N, 5)), rng.integers(0, 3, N))
    operator = Damped(_operator(model, train), 0.01)
    v = rng.normal(size=(2, operator.size))
    solution = EKFAC().solve(operator, v)
    sizes = [int(np.prod(w.shape)) for w in model.trainable_variables]
    rest = np.concatenate(
        [
            np.arange(sum(sizes[:i]), sum(sizes[: i + 1]))
            for i, w in enumerate(model.trainable_variables)
            if "normalization" in w.path
        ]
    )
    assert solution.details["parameters_outside"] == len(rest) == 12
    expected = dense_solve(operator.to_dense()[np.ix_(rest, rest)], v[:, rest])
    assert truth.relative_error(solution.x[:, rest], expected) < (1e-2 if limit == 1 else 1e-9)


def _uncovered(units=4):
    """A network whose parameters are in no layer that is covered."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.LayerNormalization()(layers.SimpleRNN(units)(inputs)))
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("limit", [1500, 1])
def test_a_network_without_covered_layers_is_solved_as_one_block(limit, float64, rng, monkeypatch):
    monkeypatch.setattr("keras_influence.linalg.solvers.ekfac._DENSE_REST", limit)
    model = _uncovered()
    operator = _operator(model, (rng.normal(size=(N, 4, 3)), rng.normal(size=(N, 4))))
    v = rng.normal(size=(2, operator.size))
    solution = EKFAC().solve(Damped(operator, 0.1), v)
    expected = dense_solve(operator.to_dense(), v, 0.1)
    assert truth.relative_error(solution.x, expected) < (5e-3 if limit == 1 else 1e-10)
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
    "solver", [CG(tol=1e-8, preconditioner=EKFAC()), ASTRA(tol=1e-3, max_passes=2000)]
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
