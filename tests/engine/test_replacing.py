"""Under which names, in which threads and for how long gradients are replaced."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from keras_influence.engine.kernels import primitives
from tests import truth
from tests.engine import second


def test_it_does_not_matter_under_which_name_an_operation_is_known(rng):
    w, v = rng.normal(size=(2, 5, 4, 2)), rng.normal(size=(2, 5, 4, 2))
    names = [
        lambda x: tf.nn.max_pool(x, 3, 1, "SAME"),
        lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"),
        lambda x: tf.compat.v1.nn.max_pool(x, [1, 3, 3, 1], [1, 1, 1, 1], "SAME"),
        lambda x: tf.raw_ops.MaxPool(
            input=x, ksize=[1, 3, 3, 1], strides=[1, 1, 1, 1], padding="SAME"
        ),
    ]
    scalars = [second.scalar(name, w) for name in names]
    expected = second.differences(lambda w: second.gradient(scalars[0], w), w, v)
    for scalar in scalars:
        assert truth.relative_error(second.products(scalar, w, v[None])[0], expected) < 1e-8


@pytest.mark.parametrize("moments", [tf.nn.moments, tf.compat.v1.nn.moments])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_moments_are_tensorflows_own_to_the_last_bit(moments, dtype, rng):
    x = tf.constant(rng.normal(size=(4, 6, 5)), dtype)
    before = [moments(x, [1, 2]), moments(x, [0, 2], keepdims=True)]
    with primitives.replaced():
        after = [tf.nn.moments(x, [1, 2]), tf.nn.moments(x, [0, 2], keepdims=True)]
        after += [moments(x, [1, 2])]
    for a, b in zip(after, [*before, before[0]]):
        for one, other in zip(a, b):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def _curvatures():
    """What TensorFlow makes of three second derivatives: none, zero, and a wrong one."""
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 1)).astype("float32")
    found = []
    for function, w in (
        (tf.nn.softsign, np.array([0.5, -2.0])),
        (lambda x: tf.image.resize(x, (5, 5)) ** 2, image),
        (lambda x: tf.nn.moments(x, [0])[1], np.array([0.5, -2.0])),
    ):
        w = tf.constant(w)
        try:
            with tf.GradientTape() as outer:
                outer.watch(w)
                slope = second.gradient(lambda w, f=function: tf.reduce_sum(f(w)), w)
            bent = outer.gradient(slope, w)
            found.append(None if bent is None else bent.numpy().tolist())
        except LookupError as error:
            found.append(str(error))
    return found


def test_other_threads_see_tensorflow_as_it_is():
    before, inside, finish, seen = _curvatures(), threading.Event(), threading.Event(), []

    def trace():
        with primitives.replaced():
            inside.set()
            finish.wait(60)
            seen.append(_curvatures())

    thread = threading.Thread(target=trace)
    thread.start()
    inside.wait(60)
    try:
        assert _curvatures() == before
    finally:
        finish.set()
        thread.join()
    assert seen[0][0] != before[0] and seen[0][1] != before[1] and seen[0][2] != before[2]
    assert _curvatures() == before


def test_threads_that_overlap_each_have_them_until_they_leave():
    before = _curvatures()
    with primitives.replaced():
        right = _curvatures()
    first_left, seen = threading.Event(), []

    def other():
        with primitives.replaced():
            entered.set()
            first_left.wait(60)
            seen.append(_curvatures())

    entered, thread = threading.Event(), threading.Thread(target=other)
    with primitives.replaced():
        thread.start()
        entered.wait(60)
    assert _curvatures() == before
    first_left.set()
    thread.join()
    assert seen == [right]
    assert _curvatures() == before


def _installed():
    from tensorflow.python.eager.polymorphic_function.concrete_function import ConcreteFunction
    from tensorflow.python.framework import ops as framework
    from tensorflow.python.ops import nn_impl

    table = framework._gradient_registry._registry
    return {k: id(table[k]) if k in table else None for k in primitives.GRADIENTS} | {
        "moments": (nn_impl.moments, tf.compat.v1.nn.moments, tf.nn.moments),
        "functions": ConcreteFunction._select_forward_and_backward_functions,
    }


def test_everything_is_as_before_after_nesting_and_exceptions():
    before = _installed()
    with primitives.replaced():
        right = _curvatures()
        with pytest.raises(ZeroDivisionError), primitives.replaced():
            raise ZeroDivisionError
        assert _curvatures() == right
    assert _installed() == before
    with pytest.raises(ZeroDivisionError), primitives.replaced():
        raise ZeroDivisionError
    assert _installed() == before


def test_what_others_put_in_place_meanwhile_stays(monkeypatch):
    from tensorflow.python.ops import nn_impl

    monkeypatch.setattr(nn_impl, "moments", nn_impl.moments)

    def theirs():
        pass

    with primitives.replaced():
        nn_impl.moments = theirs
    assert nn_impl.moments is theirs


# Operations that TensorFlow differentiates twice, but wrongly.
KEPT = {
    "max_pool": (lambda x: tf.nn.max_pool2d(x, 3, 1, "SAME"), (2, 5, 4, 2)),
    "moments": (lambda x: tf.stack(tf.nn.moments(x, [1])), (3, 4)),
    "prod": (lambda x: tf.reduce_prod(x, 1), (3, 4)),
    "cross-entropy": (
        lambda x: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(x[:3]), x[3:]),
        (6, 4),
    ),
}


def _persistent(scalar, w):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(w)
        value = scalar(w)
    tape.gradient(value, w)


def _twice(scalar, w):
    with tf.GradientTape() as tape:
        tape.watch(w)
        slope = second.gradient(scalar, w)
    tape.gradient(slope, w)


USES = {
    "called": lambda scalar, w: scalar(w),
    "differentiated": second.gradient,
    "as fit does": lambda scalar, w: tf.function(lambda w: second.gradient(scalar, w))(w),
    "persistent tape": _persistent,
    "twice": _twice,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", KEPT)
def test_what_a_function_keeps_from_before_does_not_matter(name, use, rng):
    plain, shape = KEPT[name]
    w, v = rng.normal(size=shape), rng.normal(size=shape)
    kept = second.scalar(tf.function(plain, autograph=False), w)
    USES[use](kept, tf.constant(w))
    scalar = second.scalar(plain, w)
    expected = second.differences(lambda w: second.gradient(scalar, w), w, v)
    assert truth.relative_error(second.products(kept, w, v[None])[0], expected) < 1e-8


def test_what_a_function_keeps_from_inside_is_not_seen_outside():
    before = _curvatures()
    with primitives.replaced():
        _curvatures()
        softsign = tf.function(tf.nn.softsign)
        _twice(lambda w: tf.reduce_sum(softsign(w)), tf.constant([0.5, -2.0]))
    assert _curvatures() == before
    with pytest.raises(LookupError, match="SoftsignGrad"):
        _twice(lambda w: tf.reduce_sum(softsign(w)), tf.constant([0.5, -2.0]))


@pytest.mark.slow_cases("prod")
@pytest.mark.parametrize("name", KEPT)
def test_inside_a_loop_too(name, rng):
    plain, shape = KEPT[name]
    w, v = rng.normal(size=(3, *shape)), rng.normal(size=(3, *shape))
    looped = second.scalar(lambda x: tf.map_fn(plain, x), w)
    unrolled = second.scalar(lambda x: tf.stack([plain(one) for one in tf.unstack(x)]), w)
    expected = second.differences(lambda w: second.gradient(unrolled, w), w, v)
    assert truth.relative_error(second.products(looped, w, v[None])[0], expected) < 1e-8


def test_gradients_that_a_user_stops_stay_stopped():
    def slopes(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            slope = second.gradient(lambda x: tf.reduce_sum(x**2 * tf.stop_gradient(x * x)), x)
        return slope, outer.gradient(slope, x)

    x = tf.constant([1.0, 2.0])
    compiled = tf.function(slopes, autograph=False)
    with primitives.replaced():
        found = [slopes(x), compiled(x), tf.function(compiled, autograph=False)(x)]
    for slope, curvature in found:
        np.testing.assert_array_equal(slope, [2, 16])
        np.testing.assert_array_equal(curvature, [2, 8])
