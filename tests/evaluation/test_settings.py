"""Class weights and the choice of weights mean the same in scores and in retraining."""

import keras
import numpy as np
import pytest

from keras_influence import evaluation
from tests import truth
from tests.retraining import (
    least_squares,
    ridge_changes,
    ridge_losses,
    ridge_scores,
    zeroed,
)
from tests.truth import L2

CLASS_WEIGHT = {0: 0.5, 1: 3.0}
FITS = pytest.mark.parametrize("fit", [None, least_squares], ids=["lbfgs", "fit"])


@pytest.fixture
def labelled(rng):
    """A ridge model of class labels, data, and the weight of each training example."""
    x, x_test = rng.normal(size=(40, 4)), rng.normal(size=(3, 4))
    y, y_test = ((t @ [1.0, -1, 0.5, 0] > 0.3).astype(float)[:, None] for t in (x, x_test))
    weights = np.where(y[:, 0] == 1, 3.0, 0.5)
    return truth.ridge_model(4, L2), (x, y), (x_test, y_test), weights


# ---- class weights, against weighted ridge regression


@FITS
def test_leave_one_out_with_class_weights(labelled, fit):
    model, train, test, weights = labelled
    options = {"class_weight": CLASS_WEIGHT, "damping": 0.0, "verbose": 0}
    # With a fit of one's own, scores are about the model as it is.
    truth.set_flat(model, truth.ridge_fit(train[0], train[1][:, 0], L2, weights))
    found = evaluation.leave_one_out(model, test, train, [1, 2, 30], fit=fit, tol=1e-6, **options)
    expected = ridge_changes(train, test, [1, 2, 30], weights).T
    assert truth.relative_error(found.actual, expected) < 1e-5
    scores = ridge_scores(train, test, weights)[:, [1, 2, 30]]
    assert truth.relative_error(found.predicted, scores) < 1e-5
    without = ridge_changes(train, test, [1, 2, 30]).T
    assert truth.relative_error(without, expected) > 0.1


def test_removal_curve_with_class_weights(labelled):
    model, train, test, weights = labelled
    curve = evaluation.removal_curve(
        model, test, train, counts=[3], class_weight=CLASS_WEIGHT, damping=0.0, tol=1e-8, verbose=0
    )
    order = np.argsort(-ridge_scores(train, test, weights), axis=1)[:, :3]
    expected = np.diag(ridge_changes(train, test, order, weights))
    assert truth.relative_error(curve.top[:, 0], expected) < 1e-5


@FITS
def test_subset_outputs_with_class_weights(labelled, fit):
    model, train, test, weights = labelled
    found = evaluation.subset_outputs(
        model, test, train, fit=fit, subsets=3, class_weight=CLASS_WEIGHT, tol=1e-8, verbose=0
    )
    for mask, outputs in zip(found.masks, found.outputs):
        subset = tuple(t[mask] for t in train)
        expected = ridge_losses(subset, test, weights[mask])
        assert truth.relative_error(outputs[0], expected) < 1e-5


def test_a_folder_of_other_class_weights_is_refused(labelled, tmp_path):
    model, train, test, _ = labelled
    options = {"fit": least_squares, "subsets": 2, "folder": tmp_path, "verbose": 0}
    evaluation.subset_outputs(model, test, train, **options)
    with pytest.raises(ValueError, match="other settings: train changed"):
        evaluation.subset_outputs(model, test, train, class_weight=CLASS_WEIGHT, **options)


def test_mislabel_curve_with_class_weights(rng):
    y = rng.integers(0, 2, 60)
    x = 2 * np.eye(2)[y] + 0.5 * rng.normal(size=(60, 2))
    model = truth.softmax_model(2, 2, L2)
    options = {"seed": 1, "tol": 1e-6, "class_weight": CLASS_WEIGHT, "verbose": 0}
    curve = evaluation.mislabel_curve(model, (x, y), fraction=0.1, **options)
    labels, _ = evaluation.plant_wrong_labels(y, 0.1, seed=1)
    weights = np.where(labels == 1, 3.0, 0.5)
    closed = truth.SoftmaxRegression(x, labels, 2, L2, weights)
    theta = closed.fit(np.zeros(6), tol=1e-10)
    g = weights[:, None] * closed.example_gradients(theta)
    damped = closed.hessian(theta) + 0.01 * np.eye(6)
    expected = np.einsum("np,pn->n", g, np.linalg.solve(damped, g.T))
    assert truth.relative_error(curve.scores["self-influence"], expected) < 1e-4
    assert truth.relative_error(curve.scores["loss"], weights * closed.losses(theta)) < 1e-4


@pytest.mark.slow
def test_verify_with_class_weights(rng):
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    model = truth.softmax_model(3, 2, L2)
    weights = np.where(y == 1, 3.0, 0.5)
    closed = truth.SoftmaxRegression(x, y, 2, L2, weights)
    truth.set_flat(model, closed.fit(truth.get_flat(model)))
    options = {"removals": 4, "verbose": 0}
    found = evaluation.verify(model, None, (x, y), class_weight=CLASS_WEIGHT, **options)
    assert found.ok
    assert found.gradient < 1e-6
    # The same weights are no minimum of the loss without class weights.
    assert evaluation.verify(model, None, (x, y), **options).gradient > 0.1


# ---- some of the weights, against closed forms that move only those


def bias_only(rng):
    """Softmax regression at the minimum over its biases, and what changes without an example."""
    x, y = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    test = rng.normal(size=(4, 3)), rng.integers(0, 3, 4)
    model = truth.softmax_model(3, 3, L2)
    chosen = slice(9, 12)
    theta = truth.SoftmaxRegression(x, y, 3, L2).fit(truth.get_flat(model), chosen=chosen)
    truth.set_flat(model, theta)
    unseen = truth.SoftmaxRegression(*test, 3, L2)

    def refit(weights):
        closed = truth.SoftmaxRegression(x, y, 3, L2, weights)
        return closed.fit(theta, chosen=chosen)

    def change(index):
        return unseen.losses(refit(zeroed(np.ones(50), index))) - unseen.losses(theta)

    return model, test, (x, y), theta, change


def test_leave_one_out_of_the_bias_alone(rng):
    model, test, train, theta, change = bias_only(rng)
    found = evaluation.leave_one_out(
        model, test, train, [3, 8], variables=lambda v: v.name == "bias", tol=1e-8, verbose=0
    )
    expected = np.column_stack([change(3), change(8)])
    assert truth.relative_error(found.actual, expected) < 1e-5
    closed = truth.SoftmaxRegression(*train, 3, L2)
    h = closed.hessian(theta)[9:, 9:] + 0.01 * np.eye(3)
    g, g_test = (
        truth.SoftmaxRegression(*data, 3, L2).example_gradients(theta)[:, 9:]
        for data in (train, test)
    )
    scores = g_test @ np.linalg.solve(h, g[[3, 8]].T) / 50
    assert truth.relative_error(found.predicted, scores) < 1e-5


def test_a_fit_of_the_bias_alone(rng):
    """Only what was selected is trainable, starts anew and moves; the rest is the model's."""
    model, test, train, theta, change = bias_only(rng)
    starts = []

    def fit(copy, data):
        assert [v.name for v in copy.trainable_variables] == ["bias"]
        kernel, bias = (v.numpy() for v in copy.layers[-1].variables)
        starts.append(bias)
        assert (kernel.ravel() == theta[:9]).all()
        closed = truth.SoftmaxRegression(data["x"], data["y"], 3, L2, data.get("sample_weight"))
        now = np.concatenate([kernel.ravel(), bias])
        copy.trainable_variables[0].assign(closed.fit(now, chosen=slice(9, 12))[9:])

    found = evaluation.leave_one_out(
        model, test, train, [3], fit=fit, variables=model.layers[-1].bias, verbose=0
    )
    assert truth.relative_error(found.actual[:, 0], change(3)) < 1e-6
    assert all((start == 0).all() for start in starts)


def test_a_fit_by_keras_of_the_bias_alone(rng):
    """One full-batch step of SGD with momentum, against the same step by hand."""
    model, test, (x, y), theta, _ = bias_only(rng)
    model.compile(keras.optimizers.SGD(0.5, 0.9), "sparse_categorical_crossentropy")

    def fit(copy, data):
        copy.fit(**data, epochs=1, batch_size=50, verbose=0)

    found = evaluation.leave_one_out(
        model, test, (x, y), [3], fit=fit, variables=model.layers[-1].bias, verbose=0
    )
    unseen = truth.SoftmaxRegression(*test, 3, L2)

    def losses(weights):
        start = np.concatenate([theta[:9], np.zeros(3)])
        slope = truth.SoftmaxRegression(x, y, 3, L2, weights).gradient(start)
        return unseen.losses(start - 0.5 * np.concatenate([np.zeros(9), slope[9:]]))

    expected = losses(zeroed(np.ones(50), 3)) - losses(np.ones(50))
    assert truth.relative_error(found.actual[:, 0], expected) < 1e-5


def head_only(rng):
    """A network whose head alone is θ: softmax regression of its hidden features."""
    x, y = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, "tanh", name="body")(inputs)
    regularizer = keras.regularizers.L2(L2)
    head = keras.layers.Dense(3, "softmax", kernel_regularizer=regularizer, name="head")
    model = keras.Model(inputs, head(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, (x, y), keras.Model(inputs, hidden).predict(x, verbose=0)


def test_leave_one_out_of_one_layer(rng):
    model, (x, y), features = head_only(rng)
    found = evaluation.leave_one_out(
        model, (x[:3], y[:3]), (x, y), [7], variables=model.get_layer("head"), tol=1e-7, verbose=0
    )
    weights = [np.ones(50), zeroed(np.ones(50), 7)]
    closed = [truth.SoftmaxRegression(features, y, 3, L2, w) for w in weights]
    before, after = (c.losses(c.fit(np.zeros(12)))[:3] for c in closed)
    assert truth.relative_error(found.actual[:, 0], after - before) < 1e-5


def test_subset_outputs_and_their_folder_know_the_weights(rng, tmp_path):
    model, (x, y), features = head_only(rng)
    options = {"subsets": 2, "tol": 1e-8, "folder": tmp_path, "verbose": 0}
    test, head = (x[:3], y[:3]), model.get_layer("head")
    found = evaluation.subset_outputs(model, test, (x, y), variables=head, **options)
    for mask, outputs in zip(found.masks, found.outputs):
        closed = truth.SoftmaxRegression(features[mask], y[mask], 3, L2)
        unseen = truth.SoftmaxRegression(features[:3], y[:3], 3, L2)
        expected = unseen.losses(closed.fit(np.zeros(12)))
        assert truth.relative_error(outputs[0], expected) < 1e-5
    with pytest.raises(ValueError, match="other settings: variables changed"):
        evaluation.subset_outputs(model, test, (x, y), **options)


@pytest.mark.slow
def test_mislabel_curve_and_verify_of_one_layer(rng):
    model, (x, y), features = head_only(rng)
    head = model.get_layer("head")
    closed = truth.SoftmaxRegression(features, y, 3, L2)
    theta = closed.fit(np.zeros(12))
    for variable, part in zip(head.trainable_variables, np.split(theta, [9])):
        variable.assign(part.reshape(variable.shape))
    g = closed.example_gradients(theta)
    damped = closed.hessian(theta) + 0.01 * np.eye(12)
    expected = np.einsum("np,pn->n", g, np.linalg.solve(damped, g.T))
    curve = evaluation.mislabel_curve(model, (x, y), [0, 1], variables=head, verbose=0)
    assert truth.relative_error(curve.scores["self-influence"], expected) < 1e-4
    found = evaluation.verify(model, None, (x, y), variables=head, removals=4, verbose=0)
    assert found.ok
    assert found.gradient < 1e-6


def test_a_fit_that_trains_other_weights_is_refused(rng):
    model, data, _ = head_only(rng)

    def fit(copy, data):
        copy.get_layer("body").kernel.assign_add(np.ones((4, 3)))

    options = {"fit": fit, "variables": model.get_layer("head"), "verbose": 0}
    with pytest.raises(ValueError, match="`fit` should train only the weights that `variables`"):
        evaluation.leave_one_out(model, data, data, [0], **options)


def test_frozen_layers_are_not_initialised_anew(rng):
    """As in transfer learning, where the body was trained elsewhere and is kept."""
    model, data, _ = head_only(rng)
    body = model.get_layer("body")
    body.trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    kernels = []

    def fit(copy, data):
        kernels.append([copy.get_layer(name).kernel.numpy() for name in ("body", "head")])

    evaluation.leave_one_out(model, data, data, [0], fit=fit, seeds=(5,), verbose=0)
    for kept, fresh in kernels:
        assert (kept == body.kernel.numpy()).all()
        assert (fresh != model.get_layer("head").kernel.numpy()).any()
