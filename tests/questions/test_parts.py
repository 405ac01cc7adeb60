"""Parts of a model, other targets, groups, parameters and inputs."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.truth import L2


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 4)), rng.integers(0, 3, 24)


@pytest.fixture
def network():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax", name="head")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


SELECTIONS = {
    "a layer": lambda m: m.get_layer("head"),
    "a list of a layer": lambda m: [m.get_layer("head")],
    "a list of variables": lambda m: m.get_layer("head").trainable_variables,
    "variables in another order": lambda m: m.get_layer("head").trainable_variables[::-1],
    "a predicate": lambda m: lambda v: "head" in v.path,
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_variables_restrict_theta(name, network, data):
    """For the last layer alone the model is a softmax regression on the features."""
    model = ki.InfluenceModel.from_model(network)
    chosen = SELECTIONS[name](model)
    features = keras.Model(model.inputs, model.get_layer("hidden").output)(data[0]).numpy()
    closed = truth.SoftmaxRegression(features, data[1], 3, 0.0)
    theta = truth.get_flat(model)[25:]
    hessian = closed.hessian(theta)
    found = model.hvp(np.eye(18), data, variables=chosen)
    assert truth.relative_error(found, hessian) < 1e-9
    g = closed.example_gradients(theta)
    expected = g @ np.linalg.solve(hessian + 0.1 * np.eye(18), g.T) / 24
    scores = model.influence(data, data, damping=0.1, variables=chosen)
    assert truth.relative_error(scores.values, expected) < 1e-8
    assert scores.parameters == ("head/kernel", "head/bias")
    assert "2 weights: head/kernel, head/bias" in repr(scores)


def margin(x, y, y_pred):
    """Log-odds of the true class."""
    right = keras.ops.sum(y_pred * keras.ops.one_hot(y, 3, dtype=y_pred.dtype), axis=-1)
    return keras.ops.log(right) - keras.ops.log(1 - right)


TARGETS = {
    "margin": margin,
    "a probability": lambda x, y, y_pred: y_pred[:, 1],
    "a column": lambda x, y, y_pred: y_pred[:, :1],
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_other_than_the_loss(name, data):
    """The target's derivative by finite differences, the rest in closed form."""
    model = truth.softmax_model(4, 3, L2)
    closed = truth.SoftmaxRegression(*data, 3, L2)
    theta = truth.get_flat(model)
    target = TARGETS[name]

    def values(theta):
        p = truth.softmax(closed.x @ theta.reshape(5, 3))
        return np.asarray(target(*data, keras.ops.convert_to_tensor(p))).ravel()

    slopes = np.array([(values(theta + e) - values(theta - e)) / 2e-5 for e in 1e-5 * np.eye(15)]).T
    g = closed.example_gradients(theta)
    expected = slopes @ np.linalg.solve(closed.hessian(theta) + 0.1 * np.eye(15), g.T) / 24
    scores = ki.influence(model, data, data, damping=0.1, target=target)
    assert truth.relative_error(scores.values, expected) < 1e-7
    assert f"predicted change of {scores.target}" in repr(scores)


def test_two_targets_in_turn_do_not_mix(data):
    model = truth.softmax_model(4, 3, L2)
    first, second, again = (
        ki.influence(model, data, data, damping=0.1, target=t).values
        for t in (TARGETS["margin"], TARGETS["a probability"], TARGETS["margin"])
    )
    assert (first == again).all()
    assert truth.relative_error(first, second) > 0.1


def ridge(rng, n=30):
    x = rng.normal(size=(n, 3))
    y = x @ rng.normal(size=3) + rng.normal(size=n)
    model = truth.ridge_model(3, L2, ki.InfluenceModel)
    truth.set_flat(model, truth.ridge_fit(x, y, L2))
    return model, x, y


def without(n, group):
    weights = np.ones(n)
    weights[group] = 0
    return weights


GROUPS = [np.array([0, 1, 2]), np.arange(10, 22), np.array([5])]


@pytest.mark.parametrize("batch_size", [8, 30])
def test_group_influence_against_refits(batch_size, rng):
    """Order 2 is exact for a quadratic loss; order 1 is the sum of single scores."""
    model, x, y = ridge(rng)
    train, test = (x, y[:, None]), (rng.normal(size=(4, 3)), rng.normal(size=(4, 1)))
    theta = truth.ridge_fit(x, y, L2)
    slope = 2 * (test[0] @ theta - test[1][:, 0])[:, None] * test[0]
    refits = np.array([truth.ridge_fit(x, y, L2, without(30, g)) for g in GROUPS])
    exact = slope @ (refits - theta).T
    options = {"damping": 0.0, "batch_size": batch_size}
    second = model.group_influence(test, train, GROUPS, order=2, **options)
    assert truth.relative_error(second, exact) < 1e-8
    first = model.group_influence(test, train, GROUPS, **options)
    single = model.influence(test, train, **options).values
    sums = np.stack([single[:, g].sum(1) for g in GROUPS], axis=1)
    assert truth.relative_error(first, sums) < 1e-8
    assert truth.relative_error(first, exact) > 2 * truth.relative_error(second, exact)


def test_group_masks_and_cg(rng):
    model, x, y = ridge(rng)
    train = (x, y[:, None])
    masks = [np.isin(np.arange(30), g) for g in GROUPS]
    by_mask = model.group_influence(train, train, masks, order=2, method=ki.CG(tol=1e-10))
    by_index = model.group_influence(train, train, GROUPS, order=2, method="direct")
    assert truth.relative_error(by_mask, by_index) < 1e-8


@pytest.mark.parametrize("form", ["indices", "mask", "examples"])
@pytest.mark.parametrize("order", [1, 2])
def test_parameter_influence_against_refits(order, form, rng):
    model, x, y = ridge(rng)
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


@pytest.mark.parametrize("kind", ["Functional", "Sequential", "from_model"])
def test_with_change_gives_a_copy(kind, rng):
    model, x, y = ridge(rng)
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


def test_with_change_refuses_another_shape(rng):
    model, *_ = ridge(rng)
    with pytest.raises(ValueError, match="`change` should be a list"):
        ki.with_change(model, [np.ones(3)])


def test_input_influence_is_the_derivative_of_the_score(data, network, rng):
    """Score of one training example, with H and the test gradient fixed, at a moved input."""
    x, y = data
    test = (x[:2], y[:2])
    options = {"damping": 0.5, "curvature": "gauss_newton", "method": "direct"}
    found = ki.input_influence(network, test, data, batch_size=7, **options)
    assert found.shape == (2, 24, 4)
    matrix = ki.hvp(network, np.eye(43), data, damping=0.5, curvature="gauss_newton")
    s = np.linalg.solve(
        matrix, np.array([truth.gradient(network, x[[i]], y[[i]]) for i in (0, 1)]).T
    )
    for j in (0, 5, 23):
        for feature in range(4):
            ends = []
            for sign in (1, -1):
                moved = x[[j]].copy()
                moved[0, feature] += sign * 1e-5
                ends.append(s.T @ truth.gradient(network, moved, y[[j]]) / 24)
            exact = (ends[0] - ends[1]) / 2e-5
            assert found[:, j, feature] == pytest.approx(exact, rel=1e-5, abs=1e-9)
    some = ki.input_influence(network, test, data, indices=[23, 5], **options)
    assert truth.relative_error(some, found[:, [23, 5]]) < 1e-10


def test_input_influence_leaves_an_activity_regulariser_out(data):
    """It depends on the input, but it is no part of an example's loss."""
    x, y = data
    inputs = keras.Input((4,))
    penalty = keras.regularizers.L2(4.0)
    hidden = keras.layers.Dense(5, "tanh", activity_regularizer=penalty)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")

    def loss_gradient(inputs, labels):
        nothing = np.zeros(1)
        return truth.gradient(model, inputs, labels) - truth.gradient(
            model, inputs, labels, sample_weight=nothing
        )

    options = {"damping": 0.5, "curvature": "gauss_newton", "method": "direct", "batch_size": 24}
    found = ki.input_influence(model, (x[:1], y[:1]), data, **options)
    matrix = ki.hvp(model, np.eye(43), data, damping=0.5, curvature="gauss_newton", batch_size=24)
    s = np.linalg.solve(matrix, loss_gradient(x[:1], y[:1]))
    for feature in range(4):
        moved = np.zeros((1, 4))
        moved[0, feature] = 1e-5
        ends = [s @ loss_gradient(x[[7]] + sign * moved, y[[7]]) / 24 for sign in (1, -1)]
        assert found[0, 7, feature] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_input_influence_predicts_the_effect_of_moving_an_input(rng):
    """Koh and Liang's perturbation: refit a ridge regression with one input moved."""
    model, x, y = ridge(rng)
    test = (rng.normal(size=(2, 3)), rng.normal(size=(2, 1)))
    found = model.input_influence(test, (x, y[:, None]), damping=0.0)
    theta = truth.ridge_fit(x, y, L2)
    direction, eps = rng.normal(size=3), 1e-5
    ends = []
    for sign in (1, -1):
        moved = x.copy()
        moved[4] += sign * eps * direction
        theta = truth.ridge_fit(moved, y, L2)
        ends.append((test[0] @ theta - test[1][:, 0]) ** 2)
    actual = (ends[0] - ends[1]) / (2 * eps)
    assert -found[:, 4] @ direction == pytest.approx(actual, rel=1e-5)


def test_input_influence_of_nested_inputs(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b", dtype="int32")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(4, 2)(b))
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([a, embedded]))
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", "mse")
    x = {"a": rng.normal(size=(8, 3)), "b": rng.integers(0, 4, (8, 1))}
    train = (x, rng.normal(size=(8, 1)))
    found = ki.input_influence(model, train, train, damping=1.0, curvature="gauss_newton")
    assert found["a"].shape == (8, 8, 3)
    assert found["b"] is None
