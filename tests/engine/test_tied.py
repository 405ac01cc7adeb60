"""Embeddings whose rows give the logits too, against gradients of single examples by plain tapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_influence as ki
from keras_influence.engine.layers import matrix_part
from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors.blocks import Block
from tests import truth

layers = keras.layers
N, STEPS, WORDS, WIDTH = 8, 5, 6, 3
# Not in the oldest versions.
Reversible = getattr(layers, "ReversibleEmbedding", layers.Embedding)
pytestmark = [
    pytest.mark.usefixtures("scores_by_their_kernel"),
    pytest.mark.skipif(Reversible is layers.Embedding, reason="Keras has no ReversibleEmbedding"),
]

# Options of the layer, and how many blocks with Kronecker factors the network has.
CASES = {
    "tied": ({}, 2),
    "untied": ({"tie_weights": False}, 3),
    "masked, with a cap": ({"mask_zero": True, "logit_soft_cap": 0.7}, 2),
}


def _model(options, head=None, kind=Reversible):
    keras.utils.set_random_seed(1)
    table = kind(WORDS, WIDTH, **options)
    inputs = keras.Input((STEPS,), dtype="int32")
    h = table(inputs)
    # The mask reaches the mean, as it does without us.
    h = h + layers.Dense(WIDTH, "tanh")(layers.GlobalAveragePooling1D()(h))[:, None]
    z = table(h, reverse=True)
    model = keras.Model(inputs, z if head is None else head(z))
    for v in model.trainable_variables:
        v.assign(np.random.default_rng(2).normal(size=v.shape))
    return model


def _scalar(z):
    """One number of all logits, which is not linear in them."""
    return keras.ops.mean(keras.ops.sin(z), axis=(1, 2))[:, None]


def _tokens(rng):
    x = rng.integers(0, WORDS, (N, STEPS))
    x[:, 0] = rng.integers(1, WORDS, N)  # None of them is masked as a whole.
    return x


@pytest.mark.parametrize("numbers", [None, 1], ids=["at once", "in slices"])
@pytest.mark.parametrize("name", CASES)
def test_blocks_are_the_second_moments_of_single_examples(name, numbers, rng, monkeypatch):
    if numbers:
        monkeypatch.setattr(matrix_part, "_NUMBERS", numbers)
    options, count = CASES[name]
    model = _model(options, _scalar)
    model.compile("sgd", "mse")
    x, w = _tokens(rng), rng.uniform(0.5, 2, N)
    g = truth.gradients_of_each(model, x, lambda y, i: y[0, 0]) * np.sqrt(2 * w / N)[:, None]
    problem = Problem(model, (x, rng.normal(size=(N, 1)), w), batch_size=3)
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    assert sorted(np.concatenate([b.positions.array.ravel() for b in blocks])) == list(
        range(g.shape[1])
    )
    assert all(isinstance(block, Block) for block in blocks) and len(blocks) == count
    for block in blocks:
        part = g[:, block.positions.array]
        q = block.q_inputs if block.q_inputs.size else np.eye(part.shape[1])
        expected = np.sum((q.T @ part @ block.q_outputs) ** 2, 0)
        assert block.eigenvalues == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_language_model_is_scored_layer_by_layer(name, rng):
    model = _model(CASES[name][0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = _tokens(rng)
    y = rng.integers(0, WORDS, (N, STEPS))
    expected = truth.gradients_of_each(
        model,
        x,
        lambda z, i: tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y[[i]], z, from_logits=True)
        ),
    )
    problem = Problem(model, (x, y), batch_size=4)
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert scorer.fast
    assert truth.relative_error(found, expected) < 1e-10
    v = rng.normal(size=(3, expected.shape[1]))
    assert truth.relative_error(problem.scores(v), v @ expected.T / N) < 1e-10


@pytest.mark.slow
def test_contributions_of_examples_make_up_the_whole_matrix(rng):
    """With them all no iteration is left; the answer is that of the dense matrix."""
    model = _model({}, _scalar)
    model.compile("sgd", "mse")
    train = _tokens(rng), rng.normal(size=(N, 1))
    scores = ki.influence(
        model, train, train, method=ki.CG(1e-9, preconditioner=ki.Woodbury(100)), damping=0.1
    )
    assert scores.passes <= 3
    plain = ki.influence(model, train, train, method="direct", damping=0.1)
    assert truth.relative_error(np.asarray(scores), np.asarray(plain)) < 1e-7


class Same(Reversible):
    """As KerasHub's: of another name."""


class Doubled(Reversible):
    """Not what Keras's computes."""

    def call(self, inputs, reverse=False):
        return 2 * super().call(inputs, reverse)


@pytest.mark.parametrize(("kind", "same"), [(Same, True), (Doubled, False)])
def test_a_class_that_adds_nothing_is_the_same(kind, same, rng):
    model = _model({}, _scalar, kind)
    model.compile("sgd", "mse")
    x, y = _tokens(rng), rng.normal(size=(N, 1))
    values = model(x).numpy()
    expected = 2 * (values - y) * truth.gradients_of_each(model, x, lambda z, i: z[0, 0])
    problem = Problem(model, (x, y), batch_size=4)
    scorer = problem.scorer(problem.facts.own(), "train")
    found = np.concatenate([scorer.gradients(batch) for batch in problem.train])
    assert scorer.fast
    assert truth.relative_error(found, expected) < 1e-10
    blocks = problem.curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    # One of another is seen as a whole.
    assert any(block.name.endswith("_own") for block in blocks) != same


def test_the_layer_is_as_before(rng):
    model = _model(CASES["masked, with a cap"][0])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = _tokens(rng)
    layer, before = model.layers[1], model.predict(x, verbose=0)
    own = dict(vars(layer))
    Problem(model, (x, x)).curvature("gauss_newton").network.kronecker(pseudo_gradients=1, seed=0)
    assert vars(layer).keys() == own.keys() and all(vars(layer)[k] is v for k, v in own.items())
    assert (model.predict(x, verbose=0) == before).all()
