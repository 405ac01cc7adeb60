"""Contributions of single examples against Gauss-Newton matrices from Jacobians by plain tapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence import CG, SolverError, Woodbury
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped
from tests import truth
from tests.engine.test_kronecker import Merged, _data, _model
from tests.linalg.matrices import dense_solve

layers = keras.layers
N = 9
COVERED = [
    *(("dense", True), ("dense", False), ("embedding", True), ("embedding", False)),
    *((name, False) for name in ("positions", "conv same, strides", "einsum", "called twice")),
    ("embedded positions", False),
    *((name, False) for name in ("grouped", "separable", "layer normalisation")),
]


def _case(name, rng, scalar):
    model = _model(name, scalar)
    x, y, w = (array[:N] for array in _data(name, rng, scalar))
    w[2] = 0  # An example that has no part in the loss.
    return model, (x, y, w)


def _roots(model, x, w, scalar, softmax=False):
    """J B / √n of each example, in the columns' order, and |b|², from the definition."""
    rows, strengths = [], []
    values = [v.value for v in model.trainable_variables]
    for i in range(len(x)):
        with tf.GradientTape(persistent=True) as tape:
            z = model(x[i : i + 1], training=False)[0]
            z = tf.math.log(z) if softmax else z
            outputs = tf.unstack(z)
        gradients = [tape.gradient(output, values) for output in outputs]
        flat = np.stack([np.concatenate([_flat(g) for g in each]) for each in gradients])
        p = tf.nn.softmax(z).numpy()
        root = np.sqrt([[2.0]]) if scalar else (np.eye(len(p)) - p[:, None]) * np.sqrt(p)
        rows.append(np.sqrt(w[i] / len(x)) * root.T @ flat)
        strengths.append(w[i] * (root**2).sum(0))
    return np.concatenate(rows), np.concatenate(strengths)


def _flat(gradient):
    return tf.convert_to_tensor(gradient).numpy().ravel()


def _written_out(parts, size):
    """The rows of all parts as one array."""
    rows = np.zeros((len(parts[0]), size))
    for part in parts:
        places = part.positions.array.ravel()
        rows[:, places] += part.products(np.eye(len(places))).T
    return rows


@pytest.mark.slow_cases("grouped-False")
@pytest.mark.parametrize(("name", "scalar"), COVERED)
def test_all_contributions_are_the_gauss_newton_matrix(name, scalar, float64, rng):
    model, train = _case(name, rng, scalar)
    rows, _ = _roots(model, train[0], train[2], scalar)
    operator = Problem(model, train, batch_size=4).curvature("gauss_newton")
    parts = operator.network.contributions(100, 2**30)
    found = _written_out(parts, operator.size)
    assert len(found) == (N - 1) * (1 if scalar else 3)
    assert truth.relative_error(found.T @ found, rows.T @ rows) < 1e-10
    gram = sum(part.gram() for part in parts)
    assert truth.relative_error(gram, found @ found.T) < 1e-12


def test_the_strongest_are_taken(float64, rng):
    """By the curvature at the outputs, example and class."""
    model, train = _case("dense", rng, scalar=False)
    rows, strengths = _roots(model, train[0], train[2], scalar=False)
    operator = Problem(model, train, batch_size=4).curvature("gauss_newton")
    found = _written_out(operator.network.contributions(7, 2**30), operator.size)
    strongest = rows[np.argsort(-strengths)[:7]]
    assert truth.relative_error(found.T @ found, strongest.T @ strongest) < 1e-10


def test_so_many_are_made_at_once_as_memory_allows(float64, rng, monkeypatch):
    model, train = _case("dense", rng, scalar=False)
    operator = Problem(model, train).curvature("gauss_newton")
    whole = operator.network.contributions(100, 2**30)
    together = 2 * sum(part.nbytes for part in whole) / len(whole[0])
    monkeypatch.setattr("keras_influence.engine.layers.contributions._TOGETHER", together)
    counts, made = [], PseudoGradients.contributed

    def counted(self, batch, weight, columns):
        counts.append(len(columns))
        return made(self, batch, weight, columns)

    monkeypatch.setattr(PseudoGradients, "contributed", counted)
    rows, _ = _roots(model, train[0], train[2], scalar=False)
    found = _written_out(operator.network.contributions(100, 2**30), operator.size)
    assert counts[1:] == [2] * 12 and len(found) == 24
    assert truth.relative_error(found.T @ found, rows.T @ rows) < 1e-10


def test_what_is_left_out_is_found_by_conjugate_gradients(float64, rng):
    model, train = _case("conv same, strides", rng, scalar=False)
    rows, _ = _roots(model, train[0], train[2], scalar=False)
    operator = Problem(model, train).curvature("gauss_newton")
    v = rng.normal(size=(2, operator.size))
    plain, better = (
        CG(tol=1e-10, preconditioner=p).solve(Damped(operator, 1e-3), v)
        for p in (None, Woodbury(18))
    )
    exact = dense_solve(rows.T @ rows, v, 1e-3)
    alone = Woodbury().solve(Damped(operator, 1e-3), v)
    assert truth.relative_error(alone.x, exact) < 1e-8
    assert alone.details["contributions"] == 3 * (N - 1)
    assert truth.relative_error(better.x, exact) < 1e-8
    assert better.iterations.max() < plain.iterations.max()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_with_all_of_them_one_product_shows_the_solution(precision, rng):
    keras.config.set_floatx(precision)
    try:
        model, train = _case("conv same, strides", rng, scalar=False)
    finally:
        keras.config.set_floatx("float32")
    rows, _ = _roots(model, train[0], train[2], scalar=False)
    v = rng.normal(size=(2, rows.shape[1]))
    operator = Damped(Problem(model, train).curvature("gauss_newton"), 0.1)
    solver = CG(preconditioner=Woodbury())
    solution = solver.solve(operator, v)
    assert not solution.iterations.any() and solution.converged.all()
    assert truth.relative_error(solution.x, dense_solve(rows.T @ rows, v, 0.1)) < 1e-5
    again = solver.solve(operator, v, factor=solution.factor)
    assert again.passes == 1 and (again.x == solution.x).all()
    # From a start of the user's own it iterates.
    assert solver.solve(operator, v, x0=v).iterations.all()


def _softmax(*widths):
    stack = [keras.Input((20,)), *(layers.Dense(width, "tanh") for width in widths)]
    model = keras.Sequential([*stack, layers.Dense(10, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize(
    ("widths", "n", "expected"),
    [
        ((50,), 40, (400, True)),  # All there are.
        ((300, 300), 1000, (4000, False)),  # The strongest of 10,000.
        ((300, 300), 2100, None),  # Too small a part of 21,000.
        ((), 24, None),  # More than there are parameters.
    ],
)
def test_whether_they_are_worth_it(widths, n, expected, rng):
    train = rng.normal(size=(n, 20)), rng.integers(0, 10, n)
    problem = Problem(_softmax(*widths), train)
    found = problem.curvature("gauss_newton").network.contributions_worth_it()
    assert (found and found[:2]) == expected
    assert found == problem.costs()["contributions"]


def test_conjugate_gradients_take_them_by_themselves(float64, rng):
    """With all of them no iteration is left; the answer is that of the dense matrix."""
    model, (x, y) = _softmax(30), (rng.normal(size=(12, 20)), rng.integers(0, 10, 12))
    rows, _ = _roots(model, x, np.ones(12), scalar=False, softmax=True)
    operator, v = Problem(model, (x, y)).curvature("gauss_newton"), rng.normal(size=(3, 940))
    solution = CG(tol=1e-9).solve(Damped(operator, 1e-3), v)
    assert truth.relative_error(solution.x, dense_solve(rows.T @ rows, v, 1e-3)) < 1e-8
    assert not solution.iterations.any()


@keras.saving.register_keras_serializable("test_contributions")
class Headed(keras.Model):
    """A weight of the model itself, which its loss may depend on in ways that nobody knows."""

    def __init__(self, hidden=None, **options):
        super().__init__(**options)
        self.hidden = hidden

    def build(self, shape):
        if self.hidden:
            self.hidden.build(shape)
        width = self.hidden.units if self.hidden else shape[-1]
        self.w = self.add_weight(shape=(width, 1))

    def call(self, x):
        return (self.hidden(x) if self.hidden else x) @ self.w


def _headed(width, hidden=None):
    model = Headed(hidden)
    model.build((None, width))
    model.compile("sgd", "mse")
    return model


def test_weights_of_the_model_leave_both_preconditioners_out(rng):
    """Also where they are few."""
    known = keras.Sequential([keras.Input((20,)), layers.Dense(50, "tanh"), layers.Dense(1)])
    known.compile("sgd", "mse")
    for model, expected in ((known, True), (_headed(20, layers.Dense(50, "tanh")), False)):
        operator = Problem(model, (rng.normal(size=(40, 20)), rng.normal(size=(40, 1)))).curvature(
            "gauss_newton"
        )
        assert (operator.network.contributions_worth_it() is not None) == expected
        assert operator.network.layers_are_worth_it() == expected


def test_weights_of_the_model_are_refused(float64, rng):
    """What they have to do with the others would be missing."""
    model = _headed(5, layers.Dense(4, "tanh"))
    x, y = rng.normal(size=(N, 5)), rng.normal(size=(N, 1))
    rows, _ = _roots(model, x, np.ones(N), scalar=True)
    operator, v = Problem(model, (x, y)).curvature("gauss_newton"), rng.normal(size=(2, 28))
    with pytest.raises(SolverError, match="some parameters"):
        Woodbury().solve(Damped(operator, 0.1), v)
    found = CG(tol=1e-10).solve(Damped(operator, 0.1), v).x
    assert truth.relative_error(found, dense_solve(rows.T @ rows, v, 0.1)) < 1e-8


def test_weights_of_the_model_alone_are_refused(float64, rng):
    model = _headed(5)
    x, v = rng.normal(size=(N, 5)), rng.normal(size=(1, 5))
    operator = Problem(model, (x, rng.normal(size=(N, 1)))).curvature("gauss_newton")
    with pytest.raises(SolverError, match="no contributions.*'cg'"):
        Woodbury().solve(Damped(operator, 0.1), v)
    found = CG(tol=1e-10).solve(Damped(operator, 0.1), v).x
    assert truth.relative_error(found, dense_solve(2 * x.T @ x / N, v, 0.1)) < 1e-8


def test_no_more_memory_than_is_allowed(float64, rng):
    model, train = _case("dense", rng, scalar=False)
    operator = Problem(model, train).curvature("gauss_newton")
    # The first layer's (6 + 6) numbers, the second's (7 + 3), four bytes each.
    parts = operator.network.contributions(100, 5 * 8 * 22)
    assert len(parts[0]) == 5
    assert sum(part.nbytes for part in parts) == 5 * 8 * 22


def test_what_has_no_examples_is_refused(float64, rng):
    """A layer whose rows are positions of all examples; conjugate gradients do without."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Dense(1)(Merged()(inputs)))
    model.compile("sgd", "mse")
    train = rng.normal(size=(N, 4, 3)), rng.normal(size=(N, 1))
    rows, _ = _roots(model, train[0], np.ones(N), scalar=True)
    operator = Problem(model, train, batch_size=4).curvature("gauss_newton")
    assert operator.network.contributions(100, 2**30) == ()
    v = rng.normal(size=(1, operator.size))
    with pytest.raises(SolverError, match="example gradients are known"):
        Woodbury().solve(Damped(operator, 0.1), v)
    found = CG(tol=1e-10).solve(Damped(operator, 0.1), v)
    assert truth.relative_error(found.x, dense_solve(rows.T @ rows, v, 0.1)) < 1e-8


def test_parameters_that_the_outputs_do_not_depend_on(float64, rng):
    """They have no contributions, and the damping is all there is of them."""
    inputs = keras.Input((5,))
    model = keras.Model(inputs, [layers.Dense(1)(inputs), layers.Dense(2)(inputs)])
    model.compile("sgd", ["mse", None])
    x, v = rng.normal(size=(N, 5)), rng.normal(size=(1, 18))
    operator = Problem(model, (x, rng.normal(size=(N, 1)))).curvature("gauss_newton")
    g = np.zeros((N, 18))
    g[:, :6] = np.column_stack([x, np.ones(N)])
    found = Woodbury().solve(Damped(operator, 0.1), v).x
    assert truth.relative_error(found, dense_solve(2 * g.T @ g / N, v, 0.1)) < 1e-8
