"""Groups of examples left out together: test losses and parameters, against refits."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.questions.models import example_gradients, fitted_ridge, gauss_newton, network
from tests.truth import L2


def without(n, group):
    weights = np.ones(n)
    weights[group] = 0
    return weights


GROUPS = [np.array([0, 1, 2]), np.arange(10, 22), np.array([5])]


@pytest.fixture
def problem(rng):
    """A fitted ridge regression, test data, and the slopes of the test losses there."""
    model, x, y = fitted_ridge(rng)
    test = rng.normal(size=(4, 3)), rng.normal(size=(4, 1))
    theta = truth.ridge_fit(x, y, L2)
    slope = 2 * (test[0] @ theta - test[1][:, 0])[:, None] * test[0]
    return model, test, (x, y[:, None]), slope


def refitted(x, y, weights):
    return truth.ridge_fit(x, y[:, 0], L2, weights)


@pytest.mark.parametrize("groups", [GROUPS, [np.isin(np.arange(30), g) for g in GROUPS]])
@pytest.mark.parametrize("method", ["direct", ki.CG(tol=1e-10)], ids=str)
@pytest.mark.parametrize("batch_size", [8, 30])
def test_second_order_is_exact_for_a_quadratic_loss(batch_size, method, groups, problem):
    model, test, train, slope = problem
    found = model.group_influence(
        test, train, groups, order=2, damping=0.0, method=method, batch_size=batch_size
    )
    refits = np.array([refitted(*train, without(30, group)) for group in GROUPS])
    exact = slope @ (refits - refitted(*train, None)).T
    assert truth.relative_error(found, exact) < 1e-8


def test_first_order_is_the_derivative_of_the_refit(problem):
    model, test, train, slope = problem
    found = model.group_influence(test, train, GROUPS, damping=0.0, batch_size=8)
    for i, group in enumerate(GROUPS):
        inside = np.isin(np.arange(30), group)
        up, down = (refitted(*train, 1 + sign * 1e-4 * inside) for sign in (1, -1))
        assert truth.relative_error(found[:, i], slope @ (down - up) / 2e-4) < 1e-7


def test_second_order_of_a_network_takes_the_group_out_of_the_curvature(rng):
    """(A - A_S)⁻¹ g_S for Gauss-Newton matrices that are written out without the library."""
    x, y = rng.normal(size=(24, 4)), rng.integers(0, 3, 24)
    model, group = network(l2=L2), np.arange(6, 14)
    whole = gauss_newton(model, x, L2)
    part = gauss_newton(model, x[group]) * len(group) / 24
    g = example_gradients(model, x, y)
    step = np.linalg.solve(whole - part + 0.1 * np.eye(43), g[group].sum(0) / 24)
    found = ki.group_influence(
        model, (x[:3], y[:3]), (x, y), [group], order=2, damping=0.1, method="direct",
        curvature="gauss_newton", batch_size=5,
    )  # fmt: skip
    assert truth.relative_error(found[:, 0], g[:3] @ step) < 1e-8


def test_a_mask_of_integers_is_told_from_positions(rng):
    model, x, y = fitted_ridge(rng)
    train, mask = (x, y[:, None]), np.isin(np.arange(30), GROUPS[1]).astype(int)
    with pytest.raises(ValueError, match=r"has duplicates. If .* mask .*`mask.astype\(bool\)`"):
        model.group_influence(train, train, [mask])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "uint64", "int32"])
def test_positions_of_any_integer_type_are_the_same(dtype, problem):
    model, test, train, _ = problem
    for group in (GROUPS[1], GROUPS[1].astype(dtype)):
        found = (
            model.group_influence(test, train, [group], order=2, damping=0.0),
            model.self_influence(train, indices=group, damping=0.0),
            model.parameter_influence(group, train, damping=0.0)[0],
        )
        if group is GROUPS[1]:
            expected = found
    assert all(np.array_equal(one, other) for one, other in zip(found, expected))


def test_a_mask_of_another_length_is_refused_with_its_shape(problem):
    model, test, train, _ = problem
    with pytest.raises(TypeError, match=r"dtype bool and shape \(29,\)"):
        model.group_influence(test, train, [np.ones(29, bool)])


@pytest.mark.parametrize("form", ["indices", "mask", "examples"])
@pytest.mark.parametrize("order", [1, 2])
def test_parameter_influence_against_refits(order, form, rng):
    model, x, y = fitted_ridge(rng)
    group = GROUPS[1]
    subset = {
        "indices": group,
        "mask": np.isin(np.arange(30), group),
        "examples": (x[group], y[group, None]),
    }[form]
    (change,) = model.parameter_influence(subset, (x, y[:, None]), order=order, damping=0.0)
    assert change.shape == (3, 1)
    theta = truth.ridge_fit(x, y, L2)
    if order == 2:
        exact = truth.ridge_fit(x, y, L2, without(30, group)) - theta
    else:
        up, down = (truth.ridge_fit(x, y, L2, 1 + s * 1e-4 * np.isin(np.arange(30), group))
                    for s in (1, -1))  # fmt: skip
        exact = -(up - down) / 2e-4
    assert truth.relative_error(change[:, 0], exact) < 1e-7


def test_examples_given_themselves_are_weighted_as_training_data_are(rng):
    """`class_weight` scales what an example adds to the loss, in `train` and in the subset."""
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    weights = {0: 1.0, 1: 2.5, 2: 0.5}
    model = truth.softmax_model(4, 3, L2)
    s = np.array([weights[label] for label in y])
    closed = truth.SoftmaxRegression(x, y, 3, L2, s)
    theta, group = truth.get_flat(model), np.array([2, 3, 11])
    g = s[:, None] * closed.example_gradients(theta)
    exact = np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g[group].sum(0) / 20)
    for subset in (group, (x[group], y[group])):
        change = ki.parameter_influence(
            model, subset, (x, y), damping=0.1, class_weight=weights, batch_size=7
        )
        assert truth.relative_error(np.concatenate([c.ravel() for c in change]), exact) < 1e-6


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        ((np.ones((2, 3)), np.zeros(2, int)), "`train_subset` does not fit the model's inputs"),
        ((np.ones((2, 4)), np.array([0, 7])), "(?s)`train_subset` does not.*label value of 7"),
        ((np.ones((2, 4)), np.ones((2, 4, 4))), "`train_subset` does not fit the model's loss"),
    ],
)
def test_examples_given_themselves_are_checked_as_training_data_are(subset, words, rng):
    train = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    with pytest.raises(ValueError, match=words):
        ki.parameter_influence(truth.softmax_model(4, 3), subset, train)


@pytest.mark.parametrize("kind", ["Functional", "Sequential", "from_model"])
def test_with_change_gives_a_copy(kind, rng):
    model, x, y = fitted_ridge(rng)
    if kind != "Functional":
        sequential = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1, use_bias=False,
                                                   kernel_regularizer=keras.regularizers.L2(L2))]
        )  # fmt: skip
        sequential.compile("sgd", "mse")
        sequential.set_weights(model.get_weights())
        model = sequential
    if kind == "from_model":
        model = ki.InfluenceModel.from_model(model)
    train, group = (x, y[:, None]), GROUPS[1]
    before = truth.get_flat(model)
    change = ki.parameter_influence(model, group, train, order=2, damping=0.0)
    copy = ki.with_change(model, change)
    refit = truth.ridge_fit(x, y, L2, without(30, group))
    assert truth.relative_error(truth.get_flat(copy), refit) < 1e-8
    assert (truth.get_flat(model) == before).all()
    assert type(copy) is type(model)
    copy.fit(*train, verbose=0)


def test_with_change_leaves_chance_as_it_was(rng):
    """A layer that is made after it begins with the weights that it would have begun with."""
    model = truth.softmax_model(4, 3)
    first = []
    for asked in (False, True):
        keras.utils.set_random_seed(5)
        if asked:
            ki.with_change(model, [np.zeros((4, 3)), np.zeros(3)])
        layer = keras.layers.Dense(2)
        layer.build((None, 3))
        first.append(layer.kernel.numpy())
    assert (first[0] == first[1]).all()


def test_with_change_refuses_another_shape(rng):
    model, *_ = fitted_ridge(rng)
    with pytest.raises(ValueError, match="`change` should be a list"):
        ki.with_change(model, [np.ones(3)])
