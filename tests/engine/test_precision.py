"""float32 and mixed precision: solves in float32, against the same model in float64."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests import truth
from tests.conftest import set_precision


def network():
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(3, 3, activation="gelu")(inputs)
    hidden = keras.layers.LayerNormalization()(hidden)
    hidden = keras.layers.Dense(6, "tanh")(keras.layers.Flatten()(hidden))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax", dtype="float32")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def reference():
    """Scores of a network in float64, and the float32 values of its weights."""
    set_precision("float32")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(12, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 12)
    weights = [w.astype("float32") for w in network().get_weights()]
    set_precision("float64")
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(3, 3, activation="gelu")(inputs)
    hidden = keras.layers.LayerNormalization()(hidden)
    hidden = keras.layers.Dense(6, "tanh")(keras.layers.Flatten()(hidden))
    double = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    double.compile("sgd", "sparse_categorical_crossentropy")
    double.set_weights(weights)
    options = {"damping": 0.1, "curvature": "gauss_newton", "method": ki.CG(tol=1e-10)}
    values = ki.influence(double, data, data, **options).values
    return data, weights, values


@pytest.mark.slow_cases("mixed_bfloat16")
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_scores_are_accurate_to_1e_4_in_every_policy(policy, reference):
    data, weights, expected = reference
    set_precision("float32")
    keras.config.set_dtype_policy(policy)
    model = network()
    model.set_weights(weights)
    policies = [layer.dtype_policy.name for layer in model.layers]
    scores = ki.influence(model, data, data, damping=0.1, curvature="gauss_newton", method="cg")
    assert scores.converged.all()
    assert truth.relative_error(scores.values, expected) < 1e-4
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert model(data[0]).dtype == "float32"
    hidden = model.layers[1](data[0])
    assert hidden.dtype == {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}.get(
        policy, "float32"
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_inside_the_model_is_in_full_precision_too(policy, rng):
    """Products are those of the same model in float32, by differences of its gradient."""

    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,), dtype="float32")
        inner = keras.Sequential([keras.layers.Dense(4, "tanh"), keras.layers.Dense(4)])
        hidden = inner(keras.layers.Dense(5, "tanh")(inputs))
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(hidden))
        model.compile("sgd", "mse")
        return model

    plain = build()  # In float64, as all truths.
    set_precision("float32")
    keras.config.set_dtype_policy(policy)
    mixed = build()
    keras.config.set_dtype_policy("float32")
    mixed.set_weights(plain.get_weights())
    plain.set_weights([w.astype("float64") for w in mixed.get_weights()])
    x, y = rng.normal(size=(30, 6)).astype("float32"), rng.normal(size=(30, 1)).astype("float32")
    v = rng.normal(size=len(truth.get_flat(plain)))
    before = [t.dtype for layer in mixed._flatten_layers() for t in getattr(layer, "_inputs", ())]
    found = ki.hvp(mixed, v, (x, y))
    set_precision("float64")
    expected = truth.finite_difference_hvp(plain, x.astype("float64"), y.astype("float64"), v)
    # What float32 allows here is 3e-5; bfloat16 in the inner model made it 4e-4.
    assert truth.relative_error(found, expected) < 1e-4
    after = [t.dtype for layer in mixed._flatten_layers() for t in getattr(layer, "_inputs", ())]
    assert before == after
