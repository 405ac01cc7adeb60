"""Scores from kernels that are there for something else, and derivatives without tapes.

The truth are gradients of one example after the other, by a tape over the model as it stands.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.layers import scoring
from keras_influence.engine.layers.contraction import Contraction
from keras_influence.engine.layers.scoring import Scorer
from keras_influence.engine.problem import Problem
from tests import truth
from tests.conftest import set_precision

layers = keras.layers
LOSS = keras.losses.sparse_categorical_crossentropy


@pytest.fixture(scope="module")
def problem():
    set_precision("float64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3, 2)), layers.GRU(2), layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3, 2))
    return Problem(model, (x, np.arange(6) % 2))


@pytest.fixture(scope="module")
def gradients(problem):
    """∇ℓ of each example, (n, p)."""
    found, model = [], problem.model
    ((x, y),) = problem.train
    for i in range(problem.n):
        with tf.GradientTape() as tape:
            loss = LOSS(y[i : i + 1], model(x[i : i + 1]))
        rows = tape.gradient(loss, model.trainable_variables)
        found.append(np.concatenate([np.ravel(row) for row in rows]))
    return np.array(found)


@pytest.fixture(scope="module")
def traced(problem):
    """The batch and two vectors, after a product with them."""
    vectors = np.random.default_rng(0).normal(size=(2, problem.parameters.size))
    (batch,) = problem.train
    problem.objective.gauss_newton(batch, problem.facts.train(), vectors)
    return batch, vectors


def _scores(problem, batch, vectors):
    scorer = Scorer(*_about(problem), "train", vectors)
    return scorer.scores(batch)[0]


def _about(problem):
    return problem.objective, problem.facts.examples()


def test_scores_come_from_the_kernel_of_products_where_they_are_right(
    problem, gradients, traced, monkeypatch
):
    batch, vectors = traced
    expected = gradients @ vectors.T
    assert truth.relative_error(_scores(problem, batch, vectors), expected) < 1e-9
    assert not problem.objective.kernels.has_traced(problem.objective.scores, batch)
    right = type(problem.objective).products_and_scores
    calls = []

    def wrong(self, *about):
        calls.append(about)
        products, scores = right(self, *about)
        return products, 1.1 * scores

    wrong.__name__ = right.__name__
    monkeypatch.setattr(type(problem.objective), "products_and_scores", wrong)
    assert truth.relative_error(_scores(problem, batch, vectors), expected) < 1e-9
    assert calls


def test_products_are_those_of_the_outputs_curvature(problem, traced):
    """Σ Jᵀ H J v with J by a tape and H = diag(p) - p pᵀ of the logits."""
    batch, vectors = traced
    model, total = problem.model, 0.0
    logits = keras.Model(model.inputs, model.layers[-1].input)
    kernel, bias = model.layers[-1].weights
    with tf.GradientTape(persistent=True) as tape:
        z = logits(batch[0]) @ kernel.value + bias.value
        parts = [z[i, c] for i in range(problem.n) for c in range(2)]
    rows = [tape.gradient(part, model.trainable_variables) for part in parts]
    jacobian = np.array([np.concatenate([np.ravel(r) for r in row]) for row in rows])
    for p, j in zip(tf.nn.softmax(z).numpy(), jacobian.reshape(problem.n, 2, -1)):
        total = total + j.T @ (np.diag(p) - np.outer(p, p)) @ j
    found = problem.objective.gauss_newton(batch, problem.facts.train(), vectors)
    assert truth.relative_error(found.numpy(), vectors @ total) < 1e-9


@pytest.fixture
def few_weights():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return Problem(model, (np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2))


def test_scores_of_few_weights_come_from_the_kernel_of_gradients_where_it_is_right(
    few_weights, monkeypatch
):
    """∇ℓ of a softmax regression is x (p - y)ᵀ."""
    problem, vectors = few_weights, np.random.default_rng(1).normal(size=(2, 8))
    ((x, y),) = problem.train
    left = problem.model(x).numpy() - np.eye(2)[y]
    gradients = np.concatenate([(x.numpy()[..., None] * left[:, None]).reshape(6, -1), left], 1)
    (batch,), expected = problem.train, gradients @ vectors.T
    contraction = problem.objective.made(Contraction)

    def traced():
        return contraction.kernels.has_traced(contraction.scores, batch)

    problem.example_gradients(problem.train)
    assert truth.relative_error(_scores(problem, batch, vectors), expected) < 1e-9
    assert not traced()
    right = type(contraction).example_gradients

    def wrong(self, *about):
        return 1.1 * right(self, *about)

    wrong.__name__ = right.__name__
    # What is wrong there is seen.
    contraction.kernels.forget()
    monkeypatch.setattr(type(contraction), "example_gradients", wrong)
    contraction.example_gradients(batch, problem.facts.own())
    assert truth.relative_error(_scores(problem, batch, vectors), expected) < 1e-9
    assert traced()


@pytest.mark.parametrize("count", [1, 4, 9])
def test_few_gradients_of_a_large_network_come_from_the_kernel_of_the_gradient(
    count, float64, rng, monkeypatch
):
    """Of a small one that counts as large."""
    monkeypatch.setattr(scoring, "_LARGE", 1)
    model = truth.softmax_model(4, 3, l2=0.1)
    x, y, w = rng.normal(size=(12, 4)), rng.integers(0, 3, 12), rng.uniform(0.5, 2, 12)
    problem = Problem(model, (x, y))
    test = problem.read((x[:count], y[:count], w[:count]), "test")
    found = problem.example_gradients(test)
    (batch,) = test
    contraction = problem.objective.made(Contraction)
    traced = contraction.kernels.has_traced(contraction.example_gradients, batch, many=False)
    assert traced == (count > 8)
    rows = []
    for i in range(count):
        with tf.GradientTape() as tape:
            loss = w[i] * LOSS(y[i : i + 1], model(x[i : i + 1]))
        rows.append(np.concatenate([np.ravel(g) for g in tape.gradient(loss, model.weights)]))
    assert truth.relative_error(found, np.array(rows)) < 1e-12
