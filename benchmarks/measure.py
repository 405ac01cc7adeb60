"""What is measured: curvature products, scores, and whole calls, in gradient passes."""

import time
import warnings

import numpy as np
import tensorflow as tf
from problems import data, trained
from timing import alternate

import keras_influence as ki
from keras_influence.engine.problem import Problem
from keras_influence.questions.plans import Attempt

BATCH = 256


def gradient_pass(model, x, y, batch_size=BATCH):
    """The unit: Keras's loss and its gradient over all batches, compiled, data as tensors."""

    @tf.function(reduce_retracing=True)
    def gradient(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    starts = range(0, len(x), batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    batches = [(tf.constant(x[part]), tf.constant(y[part])) for part in parts]

    def run():
        for batch in batches:
            result = gradient(*batch)
        return result[-1].numpy()

    return run


def products(name, n, vectors, score_vectors, repeats, limit, seed=0):
    """hvp and scores of one model, as rows of the table.

    hvp is the public function with all that it checks; scores are the part of `influence`
    that follows the solve.
    """
    x, y = data(name, n)
    model = trained(name, x[:5000], y[:5000], epochs=1, seed=seed)
    rng = np.random.default_rng(seed)
    size = model.count_params() - sum(int(np.prod(v.shape)) for v in model.non_trainable_variables)
    v = rng.standard_normal((size, max(*vectors, *score_vectors))).astype(np.float32)
    problem = Problem(model, (x, y))
    actions = {("gradient", 1): gradient_pass(model, x, y)}
    for k in vectors:
        actions["hvp", k] = lambda k=k: ki.hvp(model, v[:, :k], (x, y))
    for k in score_vectors:
        rows = np.ascontiguousarray(v[:, :k].T)
        actions["scores", k] = lambda rows=rows: problem.scores(rows)
    medians, firsts, spreads, processor = alternate(actions, repeats, limit)
    unit, processor_unit = medians["gradient", 1], processor["gradient", 1]
    return [
        {
            "model": name,
            "p": size,
            "n": len(x),
            "what": what,
            "vectors": k,
            "seconds": medians.get((what, k)),
            "range": spreads.get((what, k)),
            "first": firsts[what, k],
            "passes": medians[what, k] / unit if (what, k) in medians else None,
            "passes_each": medians[what, k] / unit / k if (what, k) in medians else None,
            "processor_passes_each": (
                processor[what, k] / processor_unit / k if (what, k) in medians else None
            ),
        }
        for what, k in actions
    ]


class Stages:
    """Seconds in each of the steps of `influence`, by a clock around methods of its parts."""

    methods = {"example_gradients": Problem, "solve": Attempt, "scores": Problem}

    def __enter__(self):
        self.seconds = dict.fromkeys(self.methods, 0.0)
        self._originals = {name: getattr(owner, name) for name, owner in self.methods.items()}
        for name, method in self._originals.items():
            setattr(self.methods[name], name, self._timed(name, method))
        return self

    def _timed(self, name, method):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed

    def __exit__(self, *_):
        for name, method in self._originals.items():
            setattr(self.methods[name], name, method)


def whole_call(name, n, n_test, repeats, seed=0, **options):
    """`influence` from data to scores, split into its steps; first and later calls."""
    x, y = data(name, n)
    test = data(name, n_test, "test")
    model = trained(name, x[:5000], y[:5000], epochs=1, seed=seed)
    unit_run = gradient_pass(model, x, y)
    unit_run()
    calls, units = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        unit_run()
        units.append(time.perf_counter() - start)
        with Stages() as stages, warnings.catch_warnings():
            warnings.simplefilter("ignore", ki.ConvergenceWarning)
            start = time.perf_counter()
            scores = ki.influence(model, test, (x, y), verbose=0, **options)
            calls.append({"whole": time.perf_counter() - start, **stages.seconds})
    later = {k: float(np.median([c[k] for c in calls[1:]])) for k in calls[0]}
    return {
        "model": name,
        "n": len(x),
        "n_test": n_test,
        "options": {k: str(v) for k, v in options.items()},
        "first": calls[0]["whole"],
        **later,
        "passes": later["whole"] / float(np.median(units)),
        "solver_passes": float(scores.passes),
        "residual": float(scores.residual.max()),
        "converged": bool(scores.converged.all()),
    }
