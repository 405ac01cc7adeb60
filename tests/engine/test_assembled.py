"""The matrix written out by contributions, against Gauss-Newton matrices from Jacobians by plain tapes."""

import keras
import numpy as np
import pytest

from keras_influence import Direct
from keras_influence.engine.curvature import curvature as room
from keras_influence.engine.layers import assembled, worth
from keras_influence.engine.layers.pseudo_gradients import PseudoGradients
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped
from keras_influence.linalg.operators.metered import Metered
from tests import truth
from tests.engine.test_contributions import COVERED, N, _case, _headed, _roots
from tests.engine.test_kronecker import Merged, _model
from tests.linalg.matrices import dense_solve

layers = keras.layers


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Small as these models are, products would be cheaper."""
    monkeypatch.setattr(worth, "_VECTOR", 1e9)


def _refused(*arguments):
    raise AssertionError("This is a product.")


@pytest.mark.slow_cases("grouped-False", "embedded positions-False", "called twice-False")
@pytest.mark.parametrize(("name", "scalar"), COVERED)
def test_the_matrix_is_the_gauss_newton_matrix(name, scalar, float64, rng, monkeypatch):
    """With an example without weight; it takes no products but those that it is held against."""
    model, train = _case(name, rng, scalar)
    rows, _ = _roots(model, train[0], train[2], scalar)
    operator = Problem(model, train, batch_size=4).curvature("gauss_newton")
    monkeypatch.setattr(type(operator), "to_dense", _refused)
    # Fewer examples at a time than there are in a batch.
    monkeypatch.setattr(assembled, "_NUMBERS", 3 * operator.network.worth.assembling().numbers)
    matrix, passes = operator.written_out()
    assert truth.relative_error(matrix, rows.T @ rows) < 1e-10
    assert (matrix == matrix.T).all()
    assert passes == (1 if scalar else 3) + 1


@pytest.mark.parametrize(
    ("together", "calls"),
    [(8, [8, 4, 8, 4, 3]), (12, [12, 12, 3]), (1, [4, 4, 4, 4, 4, 4, 1, 1, 1])],
)
def test_many_columns_of_few_examples_go_together(together, calls, float64, rng, monkeypatch):
    model, train = _case("dense", rng, scalar=False)
    rows, _ = _roots(model, train[0], train[2], scalar=False)
    seen, contributed = [], PseudoGradients.contributed

    def watched(self, batch, weight, columns):
        seen.append(len(columns))
        return contributed(self, batch, weight, columns)

    monkeypatch.setattr(PseudoGradients, "contributed", watched)
    monkeypatch.setattr(assembled, "examples_together", lambda *_: together)
    matrix, _ = Problem(model, train, batch_size=4).curvature("gauss_newton").written_out()
    assert truth.relative_error(matrix, rows.T @ rows) < 1e-10
    assert seen == calls


def test_a_dense_solve_is_made_of_it(rng):
    model, train = _case("dense", rng, scalar=False)
    rows, _ = _roots(model, train[0], train[2], scalar=False)
    operator, v = Problem(model, train).curvature("gauss_newton"), rng.normal(size=(3, 57))
    assert operator.vectors_to_write() < operator.size
    solution = Direct().solve(Damped(operator, 0.1), v)
    assert truth.relative_error(solution.x, dense_solve(rows.T @ rows, v, 0.1)) < 1e-5
    assert solution.passes == 3 + 1 + 1  # Contributions; two products, and the residual's.


def test_a_penalty_on_each_weight_is_in_it(float64, rng, monkeypatch):
    inputs = keras.Input((5,))
    hidden = layers.Dense(4, "tanh", kernel_regularizer=keras.regularizers.L2(0.25))(inputs)
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    model.compile("sgd", "mse")
    train = rng.normal(size=(N, 5)), rng.normal(size=(N, 1))
    rows, _ = _roots(model, train[0], np.ones(N), scalar=True)
    penalty = np.zeros(29)
    penalty[:20] = 0.5
    operator = Problem(model, train).curvature("gauss_newton")
    monkeypatch.setattr(type(operator), "to_dense", _refused)
    matrix, _ = operator.written_out()
    assert truth.relative_error(matrix, rows.T @ rows + np.diag(penalty)) < 1e-10


@pytest.mark.parametrize("blank", [slice(0, 4), slice(4, 8)])
def test_a_batch_without_weight_has_no_part(blank, float64, rng):
    model, (x, y, w) = _case("dense", rng, scalar=False)
    w[blank] = 0
    rows, _ = _roots(model, x, w, scalar=False)
    operator = Problem(model, (x, y, w), batch_size=4).curvature("gauss_newton")
    assert truth.relative_error(operator.written_out()[0], rows.T @ rows) < 1e-10


@keras.saving.register_keras_serializable("test_assembled")
class SquareOfSum(keras.regularizers.Regularizer):
    """Acts on all weights together: its Hessian is not diagonal."""

    def __call__(self, w):
        return keras.ops.square(keras.ops.sum(w))


@pytest.mark.parametrize("kind", ["penalty", "own weight", "no examples"])
def test_what_it_would_miss_is_found_by_products(kind, float64, rng):
    penalty = np.zeros(())
    if kind == "own weight":
        model, x = _headed(5, layers.Dense(4, "tanh")), rng.normal(size=(N, 5))
    elif kind == "penalty":
        model, x = keras.Sequential([layers.Dense(1, kernel_regularizer=SquareOfSum())]), None
        x = rng.normal(size=(N, 5))
        model.build((None, 5))
        penalty = 2 * np.outer([1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0])
    else:
        inputs = keras.Input((4, 3))
        model, x = (
            keras.Model(inputs, layers.Dense(1)(Merged()(inputs))),
            rng.normal(size=(N, 4, 3)),
        )
    model.compile("sgd", "mse")
    operator = Metered(Problem(model, (x, rng.normal(size=(N, 1)))).curvature("gauss_newton"))
    rows, _ = _roots(model, x, np.ones(N), scalar=True)
    matrix, passes = operator.written_out()
    assert truth.relative_error(matrix, rows.T @ rows + penalty) < 1e-10
    assert operator.passes == passes


def test_products_where_the_data_are_elsewhere(monkeypatch, rng):
    """On a cluster, whose workers would each send a matrix."""
    model, train = _case("dense", rng, scalar=False)
    problem = Problem(model, train)
    assert problem.costs()["assembling"] is not None
    monkeypatch.setattr(worth, "spread", lambda batches: 2)
    assert problem.costs()["assembling"] is None
    operator = problem.curvature("gauss_newton")
    assert operator.vectors_to_write() == operator.size


def test_products_where_they_are_cheaper(monkeypatch, rng):
    monkeypatch.setattr(worth, "_VECTOR", 3.6)
    _, train = _case("dense", rng, scalar=False)
    operator = Problem(_model.fresh("dense", False), train).curvature("gauss_newton")
    monkeypatch.setattr(room, "assembled", _refused)
    assert operator.vectors_to_write() == operator.size
    assert operator.written_out()[1] == 1
