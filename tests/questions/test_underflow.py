"""Numbers that are too small for their type are 0 in every question, whatever `np.seterr` says."""

import keras
import numpy as np
import pytest

import keras_influence as ki

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 4)).astype("float32"), rng.integers(0, 3, 40)
TRAIN, TEST = (X, Y), (X[:3], Y[:3])
KERNEL = 400 * rng.uniform(-1, 1, (4, 3))

QUESTIONS = {
    "direct": lambda model: ki.influence(model, TEST, TRAIN, method="direct"),
    "ekfac": lambda model: ki.influence(model, TEST, TRAIN, method="ekfac"),
    "find_label_issues": lambda model: ki.find_label_issues(model, TRAIN),
    "self_influence": lambda model: ki.self_influence(model, TRAIN),
    "inverse_hvp": lambda model: ki.inverse_hvp(model, np.ones(15), TRAIN),
    "representer": lambda model: ki.representer_influence(model, TEST, TRAIN),
    "explainer": lambda model: ki.Explainer(model, TRAIN, method="ekfac").self_influence(),
    "leave_one_out": lambda model: ki.evaluation.leave_one_out(
        model, TEST, TRAIN, [0], max_iter=5, tol=1.0
    ),
}


@pytest.mark.filterwarnings("ignore::keras_influence.ConvergenceWarning")
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_model_that_is_sure_of_its_outputs_under_seterr(name):
    """Probabilities of 1e-40 underflow in products, which the user's own code may have made an error."""
    head = keras.layers.Dense(3, "softmax", kernel_regularizer=keras.regularizers.L2(1e-3))
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.set_weights([KERNEL, np.zeros(3)])
    with np.errstate(all="raise"):
        QUESTIONS[name](model)
        assert set(np.geterr().values()) == {"raise"}
