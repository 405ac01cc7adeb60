"""Models on other devices than the data, and in a strategy's scope: two logical processors."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

BEGIN = """
import keras, numpy as np, tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras_influence as ki
from tests import truth
from tests.conftest import set_precision

set_precision("float64")
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)

def network():
    layers = [keras.layers.Dense(5, "tanh"), keras.layers.BatchNormalization()]
    layers += [keras.layers.LayerNormalization(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model

def check(model, train, test):
    '''Answers of softmax regression against closed forms, at the weights as they are.'''
    closed, theta = truth.SoftmaxRegression(x, y, 3, truth.L2), truth.get_flat(model)
    g, inverse = closed.example_gradients(theta), np.linalg.inv(closed.hessian(theta) + 0.1 * np.eye(15))
    options = {"damping": 0.1, "verbose": 0}
    for method in ("direct", ki.CG(tol=1e-10)):
        scores = ki.influence(model, test, train, method=method, **options).values
        assert truth.relative_error(scores, g[:3] @ inverse @ g.T / 40) < 1e-8
    assert truth.relative_error(ki.losses(model, train), closed.losses(theta)) < 1e-13
    own = ki.self_influence(model, train, indices=[7, 2], **options)
    assert truth.relative_error(own, np.einsum("ip,pq,iq->i", g, inverse, g)[[7, 2]]) < 1e-8
    assert truth.get_flat(model).tolist() == theta.tolist()
"""

# Models that were built and trained in a strategy's scope, asked within it and without.
STRATEGY = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    softmax, net = truth.softmax_model(4, 3, truth.L2), network()
for model in (softmax, net):
    model.fit(x, y, batch_size=8, verbose=0)
v = rng.normal(size=sum(w.numpy().size for w in net.trainable_variables))
expected = truth.finite_difference_hvp(net, x, y, v)

def ask():
    check(softmax, (x, y), (x[:3], y[:3]))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    check(softmax, dataset, dataset.take(1).unbatch().take(3).batch(3))
    assert truth.relative_error(ki.hvp(net, v, (x, y)), expected) < 1e-7

ask()
with strategy.scope():
    ask()
"""

# What stands for a GPU: each tensor and variable is where it was put.
PLACES = """
with tf.device("CPU:1"):
    softmax, net = truth.softmax_model(4, 3, truth.L2), network()
with tf.device("CPU:0"):
    train = tf.constant(x), tf.constant(y)
assert softmax.weights[0].value.device.endswith("CPU:1") and train[0].device.endswith("CPU:0")
for place in ("CPU:0", "CPU:1"):
    with tf.device(place):
        check(softmax, train, (train[0][:3], train[1][:3]))
v = rng.normal(size=sum(w.numpy().size for w in net.trainable_variables))
expected = truth.finite_difference_hvp(net, x, y, v)
assert truth.relative_error(ki.hvp(net, v, train), expected) < 1e-7
assert softmax.weights[0].value.device.endswith("CPU:1")
"""


@pytest.mark.slow
def test_answers_are_right_wherever_the_model_is():
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + STRATEGY + PLACES],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
