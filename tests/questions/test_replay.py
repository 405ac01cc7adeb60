"""`Replay` against Keras's own `fit` with other sample weights: same start, order and seeds."""

import keras
import numpy as np
import pytest

import keras_influence as ki
from tests.truth import relative_error

N, BATCH, EPOCHS, STEP = 10, 4, 3, 1e-4


class Trained:
    """A model that Keras trains again and again from the same start, with other sample weights."""

    def __init__(self, model, x, y, **options):
        self.model, self.data, self.options = model, (x, y), options
        model.optimizer.build(model.trainable_variables)
        self.variables = [*model.variables, *model.optimizer.variables]
        self.start = [v.numpy() for v in self.variables]

    def fit(self, weights=None, epochs=EPOCHS, callbacks=(), **options):
        for variable, value in zip(self.variables, self.start):
            variable.assign(value)
        options = {"batch_size": BATCH, "sample_weight": weights, **self.options, **options}
        replay = ki.Replay(*self.data, **options)
        self.model.fit(replay.data, epochs=epochs, verbose=0, callbacks=[*callbacks, replay])
        return replay

    def change(self, test, direction, weights=None, **options):
        """Central difference, fourth order, of test losses along a direction of the weights."""
        weights = np.ones(len(direction)) if weights is None else weights

        def at(t):
            self.fit(weights + t * STEP * direction, **options)
            return ki.losses(self.model, test)

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)


def network(*between, activation="tanh", l2=1 / 32):
    keras.utils.set_random_seed(0)
    regulariser = keras.regularizers.L2(l2)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation=activation),
            *between,
            keras.layers.Dense(3, "softmax", kernel_regularizer=regulariser),
        ]
    )


def trained(optimizer, *between, **options):
    model = network(*between)
    # Keras keeps `fit`'s arithmetic when it is compiled as one program.
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return Trained(model, *DATA, **options)


def _data(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n)


DATA, TEST = _data(N, 0), _data(3, 1)
DIRECTION = np.random.default_rng(2).normal(size=N)
SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 9, warmup_target=0.3, warmup_steps=3)


def optimizers():
    return {
        "momentum": SGD(0.3, momentum=0.9),
        "nesterov, schedule": SGD(SCHEDULE, momentum=0.9, nesterov=True),
        "adam": Adam(0.05),
        "adamw, clipped": keras.optimizers.AdamW(0.05, weight_decay=0.1, global_clipnorm=0.1),
        "rmsprop": keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
        "accumulation": Adam(0.05, gradient_accumulation_steps=2, clipnorm=0.1),
        "average": SGD(0.3, use_ema=True, ema_momentum=0.7),
        "average taken": SGD(0.3, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=4),
        "nadam": keras.optimizers.Nadam(0.05),
        "scaled": SGD(0.3, loss_scale_factor=64.0, weight_decay=0.1),
    }


@pytest.mark.parametrize("name", list(optimizers()))
def test_it_is_the_derivative_of_the_run_by_any_optimizer(name):
    run = trained(optimizers()[name])
    actual = run.change(TEST, DIRECTION)
    scores = run.fit().influence(TEST)
    assert scores.values.shape == (3, N)
    assert relative_error(-scores.values @ DIRECTION, actual) < 1e-6
    assert scores.details["rounding"] < 1e-9
    assert scores.details["steps"] == 9
