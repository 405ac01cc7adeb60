"""SOURCE against its formula with dense matrices, and against the derivative of whole trainings."""

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import keras_influence as ki
from keras_influence.questions.checkpoints import Checkpoint
from tests import truth
from tests.truth import L2

CLASSES, N = 3, 24
SGD = keras.optimizers.SGD


@pytest.fixture
def train(rng):
    return rng.normal(size=(N, 4)), rng.integers(0, CLASSES, N)


def trained(optimizer, train, epochs, every=1, callbacks=()):
    """Softmax regression by full-batch steps, its checkpoints, and θ where they were made."""
    model = truth.softmax_model(4, CLASSES, L2)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    tracin, path = ki.TracIn(every=every), [truth.get_flat(model)]
    kept = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: path.append(truth.get_flat(model))
    )
    model.fit(*train, batch_size=N, epochs=epochs, verbose=0, callbacks=[*callbacks, tracin, kept])
    return model, tracin, np.array(path)[::every]


def mean(arrays, times):
    """By the trapezoidal rule."""
    return scipy.integrate.trapezoid(np.array(arrays), times, axis=0) / (times[-1] - times[0])


def formula(path, times, segments, train, test, curvature_of=None):
    """The sum over segments, each from one checkpoint to another, with matrix exponentials."""
    closed = truth.SoftmaxRegression(*train, CLASSES, L2)
    asked = truth.SoftmaxRegression(*test, CLASSES, 0).example_gradients(path[-1])
    total, passed = 0.0, np.eye(15)
    for a, b in reversed(segments):
        some, here = path[a : b + 1], times[a : b + 1]
        t = here[-1] - here[0]
        if curvature_of is None:
            c = mean([closed.hessian(theta) for theta in some], here)
        else:
            c = curvature_of(some, here)
        decay = scipy.linalg.expm(-t * c)
        spent = np.linalg.pinv(c, hermitian=True) @ (np.eye(15) - decay)
        # The same shift of all biases has no curvature: there (I - e^-tC)/C is t.
        flat = scipy.linalg.null_space(c)
        spent = spent + t * flat @ flat.T
        gradients = mean([closed.example_gradients(theta) for theta in some], here)
        total = total + asked @ passed @ spent @ gradients.T / N
        passed = passed @ decay
    return total


def descent(train, theta, steps, rate, momentum, weight_decay, weights=None):
    """θ before and after each step of gradient descent in NumPy, (steps + 1, 15)."""
    closed, velocity, path = truth.SoftmaxRegression(*train, CLASSES, L2, weights), 0.0, [theta]
    for _ in range(steps):
        velocity = momentum * velocity - rate * closed.gradient(theta)
        theta = (1 - rate * weight_decay) * theta + velocity
        path.append(theta)
    return np.array(path)


def slopes(train, test, theta, *step):
    """-∂ℓ(test)/∂w of that, by central differences: (n_test, the first 8 examples)."""
    asked, h = truth.SoftmaxRegression(*test, CLASSES, 0), 1e-4
    weights = [np.ones(N) + s * h * e for e in np.eye(N)[:8] for s in (1, -1)]
    ends = np.array([asked.losses(descent(train, theta, *step, w)[-1]) for w in weights])
    return -(ends[::2] - ends[1::2]).T / (2 * h)


def test_it_is_the_formula_with_dense_matrices(train, test):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.5, 0.25])
    model, tracin, path = trained(SGD(schedule), train, 8, every=2)
    # The schedule's boundary is the last step of the higher rate.
    times = np.array([0, 1.0, 2.0, 2.75, 3.25])
    assert np.allclose([c.time for c in tracin.checkpoints], times, rtol=1e-6)
    before = truth.get_flat(model) + 1
    truth.set_flat(model, before)
    for segments, pairs in ((1, [(0, 4)]), (2, [(0, 2), (2, 4)]), (3, [(0, 1), (1, 3), (3, 4)])):
        scores = ki.source_influence(
            model, test, train, tracin, segments=segments, method="direct", batch_size=7
        )
        expected = formula(path, times, pairs, train, test)
        assert truth.relative_error(scores.values, expected) < 1e-6
    assert "3 segments of training, 5 checkpoints" in repr(scores)
    # The weights that the model has do not matter, and come back.
    assert (truth.get_flat(model) == before).all()


def test_loss_scaling_is_the_optimizer_that_it_wraps(train, test):
    """As mixed precision wraps SGD; the steps that it leaves out take no time."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.5, 0.25])
    scaled = keras.optimizers.LossScaleOptimizer(SGD(schedule))

    def begins(epoch, logs):
        if epoch:
            scaled.dynamic_scale.assign(np.inf if epoch in (1, 4) else 8.0)

    overflow = keras.callbacks.LambdaCallback(on_epoch_begin=begins)
    model, tracin, path = trained(scaled, train, 8, every=2, callbacks=[overflow])
    times = np.array([0, 0.5, 1.5, 2.0, 2.75])
    assert np.allclose([c.time for c in tracin.checkpoints], times, rtol=1e-6)
    scores = ki.source_influence(model, test, train, tracin, segments=2, method="direct")
    expected = formula(path, times, [(0, 2), (2, 4)], train, test)
    assert truth.relative_error(scores.values, expected) < 1e-6


@pytest.mark.slow_cases("step1")
@pytest.mark.parametrize(
    "step", [{"momentum": 0.0, "weight_decay": 0.0}, {"momentum": 0.5, "weight_decay": 0.2}]
)
def test_it_comes_near_the_derivative_of_the_training(step, train, test):
    """Segments of one interval each leave the exponential for the power, of first order in the rate."""
    model, tracin = truth.softmax_model(4, CLASSES, L2), ki.TracIn()
    theta, errors = truth.get_flat(model), []
    for rate, steps in ((0.1, 40), (0.025, 160)):
        model.compile(SGD(rate, **step), "sparse_categorical_crossentropy")
        path, every = descent(train, theta, steps, rate, **step), steps // 20
        tracin.checkpoints = [
            Checkpoint.of(i, i, rate * i, [path[i, :12].reshape(4, 3), path[i, 12:]])
            for i in range(0, steps + 1, every)
        ]
        exact = slopes(train, test, theta, steps, rate, *step.values())
        about = model, test, train, tracin
        fine, coarse = (
            ki.source_influence(*about, segments=s, method="direct").values[:, :8] for s in (20, 1)
        )
        errors.append(truth.relative_error(fine, exact))
        assert errors[-1] < 0.5 * truth.relative_error(coarse, exact)
    assert errors[1] < 0.05
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.slow
def test_where_the_curvature_is_constant_ekfac_is_exact(rng):
    """Linear regression: C = 2 E[x xᵀ] + 2 l2 I; one segment takes the mean gradient for all of it."""
    x, y = rng.normal(size=(N, 4)), rng.normal(size=(N, 1))
    model, rate, epochs = truth.ridge_model(4, L2), 0.02, 30
    start, path = truth.get_flat(model), []
    model.compile(SGD(rate), "mse")
    tracin = ki.TracIn()
    model.fit(x, y, batch_size=N, epochs=epochs, verbose=0, callbacks=[tracin])
    c = 2 * x.T @ x / N + 2 * L2 * np.eye(4)
    theta = start
    for _ in range(epochs + 1):
        path.append(2 * (x @ theta - y[:, 0])[:, None] * x)
        theta = theta - rate * (np.mean(path[-1], 0) + 2 * L2 * theta)
    test = rng.normal(size=(3, 4)), rng.normal(size=(3, 1))
    end = truth.get_flat(model)
    asked = 2 * (test[0] @ end - test[1][:, 0])[:, None] * test[0]
    t = rate * epochs
    gradients = mean(path, np.arange(epochs + 1))
    one = asked @ (np.eye(4) - scipy.linalg.expm(-t * c)) @ np.linalg.solve(c, gradients.T) / N
    scores = ki.source_influence(model, test, (x, y), tracin, segments=1)
    assert truth.relative_error(scores.values, one) < 1e-6
    # Each step's gradient by itself, and powers in place of exponentials: the run, exactly.
    steps = np.eye(4) - rate * c
    powers = [np.linalg.matrix_power(steps, epochs - 1 - k) for k in range(epochs)]
    exact = rate * sum(asked @ p @ g.T for p, g in zip(powers, path)) / N
    scores = ki.source_influence(model, test, (x, y), tracin, segments=epochs)
    assert truth.relative_error(scores.values, exact) < 0.03


@pytest.mark.slow
def test_ekfac_has_the_bases_of_the_mean_factors(train, test):
    """Expected factors in NumPy; pseudo-gradients are random, and there are many of them."""
    model, tracin, path = trained(SGD(0.5), train, 4, every=2)
    closed = truth.SoftmaxRegression(*train, CLASSES, L2)

    def kronecker(path, times):
        p = [truth.softmax(closed.x @ theta.reshape(5, CLASSES)) for theta in path]
        s = [np.diag(q.mean(0)) - q.T @ q / N for q in p]
        bases = [np.linalg.eigh(m)[1] for m in (closed.x.T @ closed.x / N, mean(s, times))]
        q = np.kron(*bases)
        h = mean([closed.hessian(theta) for theta in path], times)
        return q @ np.diag(np.diag(q.T @ h @ q)) @ q.T

    times = np.array([0, 1.0, 2.0])
    expected = formula(path, times, [(0, 1), (1, 2)], train, test, kronecker)
    many = ki.EKFAC(pseudo_gradients=120)
    scores = ki.source_influence(model, test, train, tracin, segments=2, method=many)
    assert truth.relative_error(scores.values, expected) < 0.02
    dense = formula(path, times, [(0, 1), (1, 2)], train, test)
    assert truth.relative_error(expected, dense) > 0.02


def test_what_it_cannot_do_is_refused(train, test):
    model, tracin, _ = trained(SGD(0.1), train, 2)
    for options, words in (
        ({"segments": 3}, "`segments` should be at most 2"),
        ({"method": "cg"}, "`method` should be 'ekfac'"),
        ({"method": ki.Direct(max_size=10)}, "15 x 15"),
    ):
        with pytest.raises(ValueError, match=words):
            ki.source_influence(model, test, train, tracin, **{"segments": 1, **options})
    with pytest.raises(ValueError, match="no checkpoints"):
        ki.source_influence(model, test, train, ki.TracIn())
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="SOURCE needs the learning rate of SGD"):
        ki.source_influence(model, test, train, tracin)
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="sum")
    model.compile(SGD(0.1), loss)
    with pytest.raises(ValueError, match="regularisers"):
        ki.source_influence(model, test, train, tracin)


def test_a_sum_counts_visits(train, test):
    """The sum over a batch at 1/n of the rate is the same training."""
    found = []
    for reduction, rate in (("sum_over_batch_size", 0.4), ("sum", 0.4 / 8)):
        keras.utils.set_random_seed(0)
        model = truth.softmax_model(4, CLASSES)
        loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
        model.compile(SGD(rate), loss)
        tracin = ki.TracIn()
        options = {"batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": False}
        model.fit(*train, **options, callbacks=[tracin])
        options = {"segments": 2, "method": "direct"}
        found.append(ki.source_influence(model, test, train, tracin, **options).values)
    assert truth.relative_error(found[1], found[0]) < 1e-6


@pytest.mark.slow
def test_of_a_net_it_comes_nearer_to_the_derivative_of_the_run_than_others(train, test):
    """A net that was stopped early, after steps on minibatches; the derivative is `Replay`'s."""
    dense = keras.layers.Dense
    net = keras.Sequential([keras.Input((4,)), dense(8, "tanh"), dense(CLASSES, "softmax")])
    net.compile(SGD(0.2, momentum=0.5), "sparse_categorical_crossentropy")
    replay, tracin = ki.Replay(*train, batch_size=8), ki.TracIn(every=2)
    net.fit(replay.data, epochs=20, shuffle=False, verbose=0, callbacks=[replay, tracin])
    exact = replay.influence(test).values
    about, method = (net, test, train), ki.EKFAC(pseudo_gradients=20)
    source, direct = (
        ki.source_influence(*about, tracin, segments=5, method=m, verbose=0).values
        for m in (method, "direct")
    )
    others = [tracin.influence(*about, verbose=0).values]
    for damping in (0.001, 0.01, 0.1, "training"):
        scores = ki.influence(*about, damping=damping, method="direct", verbose=0)
        others.append(scores.values)
    assert np.corrcoef(direct.ravel(), exact.ravel())[0, 1] > 0.95
    assert abs(np.polyfit(direct.ravel(), exact.ravel(), 1)[0] - 1) < 0.1
    errors = [truth.relative_error(values, exact) for values in others]
    assert truth.relative_error(direct, exact) < 0.8 * min(errors)
    # Without the curvature between its two layers.
    assert truth.relative_error(source, exact) < 0.5 * errors[0]


def test_what_training_did_besides_is_said(train, test):
    """Weights that do not decay with the others are refused, and clipped steps are warned of."""
    optimizer = SGD(0.1, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model, tracin, _ = trained(optimizer, train, 2)
    about = {"segments": 1, "method": "direct"}
    with pytest.raises(ValueError, match="weight_decay leaves out .*bias"):
        ki.source_influence(model, test, train, tracin, **about)
    kernel, bias = (
        ki.source_influence(model, test, train, tracin, variables=[v], **about).values
        for v in model.trainable_variables
    )
    model.optimizer.weight_decay = None
    still = {"variables": [model.trainable_variables[0]], **about}
    assert (ki.source_influence(model, test, train, tracin, **still).values != kernel).any()
    still["variables"] = [model.trainable_variables[1]]
    assert np.array_equal(ki.source_influence(model, test, train, tracin, **still).values, bias)
    model, tracin, _ = trained(SGD(0.1, global_clipnorm=0.5), train, 2)
    with pytest.warns(UserWarning, match="clips gradients .global_clipnorm=0.5.*Take `Replay`"):
        ki.source_influence(model, test, train, tracin, **about)
    with pytest.warns(UserWarning, match="clips gradients .*Give a number"):
        ki.influence(model, test, train, damping="training")
