"""Operators against the matrices that they stand for."""

import itertools

import numpy as np
import pytest
import scipy.sparse.linalg

from keras_influence.linalg.operators import (
    Damped,
    Dense,
    LinearOperator,
    Metered,
    Restricted,
    layered,
    undamped,
)
from keras_influence.linalg.solvers import EKFAC, TwoLevel, Woodbury
from tests import truth
from tests.linalg import matrices
from tests.linalg.matrices import Layers, spectral


class Halves(Dense):
    """A matrix whose estimates are each a half of the data: the matrix twice, and zero."""

    def samples(self, batch_size, seed):
        for factor in itertools.cycle((2.0, 0.0)):
            half = Dense(factor * self.to_dense())
            half.share = 0.5
            yield half


@pytest.fixture
def matrix(rng):
    a = rng.normal(size=(6, 6))
    return a + a.T


def test_products_are_of_rows(matrix, rng):
    rows = rng.normal(size=(3, 6))
    for operator, expected in ((Dense(matrix), matrix), (Damped(Dense(matrix), 0.5), matrix + 0.5 * np.eye(6))):  # fmt: skip
        assert operator.matmat(rows) == pytest.approx((expected @ rows.T).T)
        assert operator.matvec(rows[0]) == pytest.approx(expected @ rows[0])
        assert operator.to_dense() == pytest.approx(expected)


def test_a_matrix_that_is_wider_than_a_block_is_written_out_whole():
    matrix = spectral(np.linspace(-1, 1, 1100))[0]
    assert np.abs(Dense(matrix).to_dense() - matrix).max() < 1e-14


def test_dense_takes_square_matrices_only():
    with pytest.raises(ValueError, match="square"):
        Dense(np.ones((2, 3)))


def test_a_system_is_a_curvature_and_lambda(matrix):
    curvature = Dense(matrix)
    assert undamped(Damped(curvature, 0.3)) == (curvature, 0.3)
    assert undamped(curvature) == (curvature, 0.0)


def test_restricted_is_a_block_of_the_matrix(matrix, rng):
    positions = np.array([4, 0, 3])
    block = Restricted(Dense(matrix), positions)
    assert block.size == 3
    assert block.to_dense() == pytest.approx(matrix[np.ix_(positions, positions)])
    rows = rng.normal(size=(2, 3))
    assert block.matmat(rows) == pytest.approx(rows @ matrix[np.ix_(positions, positions)])


# ---- as SciPy sees it


def test_scipy_sees_columns(matrix, rng):
    operator = Damped(Dense(matrix), 0.5).as_scipy()
    damped = matrix + 0.5 * np.eye(6)
    columns = rng.normal(size=(6, 3))
    assert operator.shape == (6, 6)
    assert operator.dtype == np.float64
    for v in (columns, columns[:, 0], columns[:, :1]):
        for product in (operator @ v, operator.H @ v):
            assert product.shape == v.shape
            assert product == pytest.approx(damped @ v)


def test_scipys_own_solver_takes_it(rng):
    matrix, _ = spectral(np.linspace(1, 3, 8))
    x = rng.normal(size=8)
    found, info = scipy.sparse.linalg.cg(
        Dense(matrix).as_scipy(), matrix @ x, **matrices.relative(1e-12)
    )
    assert info == 0
    assert truth.relative_error(found, x) < 1e-10


# ---- what a solve costs


def test_a_product_is_a_pass_however_many_its_rows(matrix, rng):
    meter = Metered(Dense(matrix))
    rows = rng.normal(size=(3, 6))
    assert (meter.matmat(rows) == Dense(matrix).matmat(rows)).all()
    meter.matvec(rows[0])
    assert meter.passes == 2


def test_an_operator_on_a_part_of_the_data_costs_that_part(matrix, rng):
    operator = Dense(matrix)
    operator.share = 0.25
    meter = Metered(operator)
    for wrapped in (meter, Damped(meter, 0.1), Restricted(meter, np.arange(6))):
        assert wrapped.share == 0.25
        wrapped.matvec(rng.normal(size=6))
    assert meter.passes == 0.75


def test_estimates_are_counted_by_their_share(matrix, rng):
    meter = Metered(Halves(matrix))
    v = rng.normal(size=6)
    samples = Damped(meter, 0.1).samples(3, seed=0)
    found = [next(samples).matvec(v) for _ in range(2)]
    assert found[0] == pytest.approx(2 * matrix @ v + 0.1 * v)
    assert np.mean(found, axis=0) == pytest.approx(matrix @ v + 0.1 * v)
    assert meter.passes == 1


def test_without_noise_an_estimate_is_the_operator_itself(matrix):
    operator = Dense(matrix)
    assert all(s is operator for s in itertools.islice(operator.samples(3, 0), 3))


def test_what_the_layers_take_is_counted(rng):
    """Two passes for each pseudo-gradient, and a product of what is outside; nine of a hundred examples."""
    for solver, passes in ((TwoLevel(pseudo_gradients=3), 6), (EKFAC(3), 7), (Woodbury(9), 0.09)):
        layers = Layers(rng)
        meter = Metered(layers)
        solver.factorise(meter, 0.1)
        assert meter.network is layers.network
        assert meter.passes == passes
        solver.factorise(layers, 0.1)  # Where nobody counts.


def test_what_has_no_layers_says_so(matrix):
    assert layered(Layers(np.random.default_rng(0))).n == 100
    assert not hasattr(LinearOperator, "kronecker")
    meter = Metered(Dense(matrix))
    for operator in (Dense(matrix), Damped(Dense(matrix), 0.1), meter):
        assert operator.network is None
    for operator in (Dense(matrix), meter):
        with pytest.raises(ValueError, match="EKFAC.*Received: Dense.*'cg'"):
            layered(operator)
    assert meter.passes == 0
