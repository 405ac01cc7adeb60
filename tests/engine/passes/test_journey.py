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


def test_a_regulariser_that_has_changed_makes_another_parcel(rng):
    model = truth.softmax_model.fresh(4, 3, L2)
    data = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    key = journey.Parcel.of(Problem(model, data)._ground).key
    model.layers[-1].kernel_regularizer.l2 = 3 * L2
    sent = journey.Parcel.of(Problem(model, data)._ground)
    assert sent.key != key
    there = sent.arrived().objective.model()
    assert float(there.layers[-1].kernel_regularizer.l2) == pytest.approx(3 * L2)


def test_a_model_that_gives_other_losses_is_refused(problem):
    class Wrong:
        """Stands for a ground whose losses were others where it came from."""

        def __reduce__(self):
            function, (objective, facts, few, losses) = problem._ground.__reduce__()
            return function, (objective, facts, few, losses + 1)

    with pytest.raises(RuntimeError, match="other losses in another process.*global variable"):
        journey.Parcel.of(Wrong()).arrived()


def test_a_model_without_a_config_arrives_with_all_that_it_holds(rng):
    """Its weights are in the order in which they were given to it, not in that of its attributes."""

    class Net(keras.Model):
        def __init__(self, *parts):
            super().__init__()
            self.first = []
            self.norm = keras.layers.Normalization()
            self.second, self.inner, self.table = parts
            self.first.append(keras.layers.Dense(3))
            self.loose = self.add_weight(shape=(3,), initializer="random_normal", name="loose")
            self.fixed = self.add_weight(shape=(3,), initializer="ones", trainable=False)
            self.frozen = keras.layers.Dense(3)
            self.frozen.trainable = False
            self.drop = keras.layers.Dropout(0.5)

        def call(self, x, training=False):
            x = self.inner(self.second(self.first[0](self.norm(x)))) + self.loose * self.fixed
            return self.drop(self.frozen(x), training=training) + self.table[0]

    class Powers(keras.Loss):
        def __init__(self, power):
            super().__init__()
            self.power = power

        def call(self, y, y_pred):
            return keras.ops.mean(keras.ops.abs(y - y_pred) ** self.power, -1)

    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    x, y = rng.normal(2, 3, (20, 3)), rng.normal(size=(20, 3))
    model = Net(keras.layers.Dense(3), inner, np.arange(3.0))
    model.norm.adapt(x)
    loss = Powers(3.0)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["mae"], loss_weights=0.5)
    model.fit(x, y, verbose=0, epochs=2)
    before = {name: value for name, value in vars(model).items() if name != "_lock"}
    parcel = pickle.loads(pickle.dumps(journey.Parcel.of(Problem(model, (x, y))._ground)))
    assert {name: value for name, value in vars(model).items() if name != "_lock"} == before
    there = parcel.arrived().objective.model()
    assert there is not model and type(there).__name__ == "Net"
    assert np.array_equal(there(x), model(x))
    for kind in ("trainable_variables", "non_trainable_variables"):
        pairs = list(zip(getattr(there, kind), getattr(model, kind), strict=True))
        assert all(a is not b and np.array_equal(a, b) for a, b in pairs)
    assert len({v.numpy().tobytes() for v in model.trainable_variables if v.ndim == 2}) == 3
    assert np.array_equal(there.loss(y, there(x)), loss(y, model(x)))


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
