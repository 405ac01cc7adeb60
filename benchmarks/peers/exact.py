"""How far a result is from the truth: the dense solution in float64, or the residual."""

import numpy as np
import scipy.linalg
import tensorflow as tf

import keras_influence as ki


def softmax_regression_scores(problem):
    """The scores of softmax regression from its dense Hessian, all in float64 NumPy.

    The Hessian of the mean cross-entropy in (kernel, bias) is the mean of
    (diag(p) - p pᵀ) ⊗ x xᵀ with x extended by a one.
    """
    kernel, bias = (w.astype(np.float64) for w in problem.weights)
    theta = np.vstack([kernel, bias])
    x, p, residual = _softmax(problem.x_train, problem.y_train, theta)
    x_test, _, residual_test = _softmax(problem.x_test, problem.y_test, theta)
    n, features, classes = len(x), *theta.shape
    hessian = np.empty((classes, features, classes, features))
    for a in range(classes):
        for b in range(a, classes):
            weight = p[:, a] * ((a == b) - p[:, b]) / n
            hessian[a, :, b] = hessian[b, :, a] = x.T @ (weight[:, None] * x)
    hessian = hessian.reshape(classes * features, -1)
    hessian.flat[:: len(hessian) + 1] += problem.damping
    rows = (residual_test[:, :, None] * x_test[:, None]).reshape(len(x_test), -1)
    factor = scipy.linalg.cho_factor(hessian, overwrite_a=True)
    solution = scipy.linalg.cho_solve(factor, rows.T).T.reshape(-1, classes, features)
    # ∇ℓ(train) is residual ⊗ x, contracted without being formed.
    return np.einsum("jc,icj->ij", residual, solution @ x.T, optimize=True) / n


def _softmax(images, labels, theta):
    """Extended inputs, probabilities, and the loss's gradient in the logits."""
    x = images.reshape(len(images), -1).astype(np.float64)
    x = np.hstack([x, np.ones((len(x), 1))])
    z = x @ theta
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return x, p, p - np.eye(p.shape[1])[labels]


def relative_error(scores, truth):
    """The largest over test examples of ‖scores - truth‖ / ‖truth‖."""
    return float((np.linalg.norm(scores - truth, axis=1) / np.linalg.norm(truth, axis=1)).max())


def relative_residual(problem, model, solution):
    """The largest ‖∇ℓ - (H + λI) x‖ / ‖∇ℓ‖ over test examples, with the Keras model's Hessian."""
    rows = _gradients(model, problem.x_test, problem.y_test)
    train = problem.x_train, problem.y_train
    product = ki.hvp(model, solution.T.astype(np.float32), train, damping=problem.damping)
    left = np.linalg.norm(rows - np.asarray(product).T, axis=1)
    return float((left / np.linalg.norm(rows, axis=1)).max())


def _gradients(model, x, y):
    """∇ℓ of each example, (k, p), by Keras and one tape each."""
    variables, rows = [v.value for v in model.trainable_variables], []
    for i in range(len(y)):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y[i : i + 1], y_pred=model(x[i : i + 1]))
        pieces = tape.gradient(loss, variables)
        rows.append(np.concatenate([np.ravel(g) for g in pieces]))
    return np.stack(rows)
