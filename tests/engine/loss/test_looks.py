"""How often a model is called on the same few examples."""

import keras
import numpy as np
import pytest

from keras_influence.engine.loss import looks

layers = keras.layers


class Counted(layers.Dense):
    calls = 0

    def call(self, x):
        type(self).calls += 1
        return super().call(x)


def _outputs(model, x, **options):
    with looks.called(model, (x,), **options) as (_, y_pred):
        return y_pred


@pytest.fixture
def x(rng):
    return keras.ops.convert_to_tensor(rng.normal(size=(4, 3)).astype(np.float32))


def test_outputs_are_remembered_by_contents(x):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with looks.remembering(model):
        first = _outputs(model, x)
        assert _outputs(model, x + 0) is first
        assert _outputs(model, x, anew=True) is not first
        assert _outputs(model, x + 1) is not first
        assert _outputs(model, x[:2]).shape == (2, 2)
    assert _outputs(model, x) is not first
    with looks.remembering(model):
        model.layers[0].kernel.assign_add(np.ones((3, 2)))
        truth = x.numpy() @ model.layers[0].kernel.numpy()
        np.testing.assert_allclose(_outputs(model, x), truth, rtol=1e-5, atol=1e-6)


def test_of_all_data_only_some_is_remembered(x, rng):
    """Looks at a loss of the user's go through every batch."""
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    batch = keras.ops.convert_to_tensor(rng.normal(size=(17, 3)).astype(np.float32))
    with looks.remembering(model):
        first = _outputs(model, x)
        assert _outputs(model, batch) is not _outputs(model, batch)
        for i in range(100):
            _outputs(model, x + i)
        assert _outputs(model, x) is first
        assert len(looks._remembered.get().outputs) == 64


@pytest.mark.parametrize(
    "layer",
    [Counted(2), layers.Lambda(lambda t: t * 2), layers.ActivityRegularization(0.1)],
    ids=["own class", "own function", "adds to the loss"],
)
def test_nothing_is_remembered_of_what_may_leave_something_behind(layer, x):
    model = keras.Sequential([keras.Input((3,)), layer])
    with looks.remembering(model):
        assert _outputs(model, x) is not _outputs(model, x)
