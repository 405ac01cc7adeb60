"""Parcels of models: what is in them, when they are other ones, and that they are not kept for ever."""

import gc
import pickle
import weakref

import keras
import numpy as np
import pytest

from keras_influence.engine.passes import journey
from keras_influence.engine.problem import Problem
from tests import truth
from tests.truth import L2

pytest.importorskip("cloudpickle")


@pytest.fixture
def problem(rng):
    model = truth.softmax_model(4, 3, L2)
    return Problem(model, (rng.normal(size=(20, 4)), rng.integers(0, 3, 20)))


def test_what_arrives_is_another_model_with_the_same_weights(problem):
    parcel = pickle.loads(pickle.dumps(journey.Parcel.of(problem._ground)))
    ground = parcel.arrived()
    assert parcel.arrived() is ground
    there, here = ground.objective.model(), problem.model
    assert there is not here
    assert np.array_equal(truth.get_flat(there), truth.get_flat(here))
    truth.set_flat(here, np.zeros(15))
    assert truth.get_flat(there).any()


def test_a_parcel_is_another_one_only_if_the_model_is(problem):
    key = journey.Parcel.of(problem._ground).key
    assert journey.Parcel.of(problem._ground).key == key
    problem.model.optimizer.learning_rate = 0.3
    assert journey.Parcel.of(problem._ground).key == key
    truth.set_flat(problem.model, np.ones(15))
    assert journey.Parcel.of(problem._ground).key != key


def test_a_model_that_gives_other_losses_is_refused(problem):
    class Wrong:
        """Stands for a ground whose losses were others where it came from."""

        def __reduce__(self):
            function, (objective, facts, few, losses) = problem._ground.__reduce__()
            return function, (objective, facts, few, losses + 1)

    with pytest.raises(RuntimeError, match="other losses in another process.*global variable"):
        journey.Parcel.of(Wrong()).arrived()


def test_what_is_no_longer_in_use_goes(problem):
    ground = journey.Parcel.of(problem._ground).arrived()
    seen = weakref.ref(ground.objective.model())
    del ground
    for i in range(journey._MOST):
        journey.Parcel.of(("other", i)).arrived()
    keras.backend.clear_session()
    gc.collect()
    assert seen() is None
    assert len(journey._made) <= journey._MOST
