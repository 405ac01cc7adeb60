"""What is measured: curvature products, scores, and whole calls, in gradient passes."""

import time
import warnings

import numpy as np
import tensorflow as tf
from problems import data, trained
from timing import alternate

import keras_influence as ki
from keras_influence.engine.problem import Problem
from keras_influence.questions import kept
from keras_influence.questions.attempts import Attempt

BATCH = 256
# Sizes of batches that a gradient pass is tried with, beside all of the data in one.
BATCHES = (64, BATCH, 1024)
# Rows and columns of the matrices whose product is the machine's peak.
PEAK = 2048
# Multiplications of a product or a score for one vector, in those of a forward pass, at least.
OPERATIONS = {"hvp": 2, "product": 2, "scores": 1}


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

    hvp is the public function with all that it checks, product the same of an operator that is
    there, as solvers ask for it; scores are the part of `influence` that follows the solve. A gradient pass is the fastest of several batch sizes'. Each is run twice in a row, as where
    it is repeated, and the second time counts. "peak" is the
    share of the machine's float32 matrix-product peak, by processor time, that the fewest possible
    operations make: two matrix products with each weight for a curvature product, one for a score.
    """
    x, y = data(name, n)
    model = trained(name, x[:5000], y[:5000], epochs=1, seed=seed)
    rng = np.random.default_rng(seed)
    size = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    v = rng.standard_normal((size, max(*vectors, *score_vectors))).astype(np.float32)
    problem = Problem(model, (x, y))
    sizes = sorted({*(b for b in BATCHES if b < len(x)), len(x)})
    actions = {("gradient", b): gradient_pass(model, x, y, b) for b in sizes}
    square = tf.random.normal((PEAK, PEAK))
    actions["peak", 1] = lambda: tf.matmul(square, square).numpy()
    curvature = problem.curvature("hessian")
    for k in vectors:
        rows = np.ascontiguousarray(v[:, :k].T)
        actions["hvp", k] = lambda k=k: ki.hvp(model, v[:, :k], (x, y))
        actions["product", k] = lambda rows=rows: curvature.matmat(rows)
    for k in score_vectors:
        rows = np.ascontiguousarray(v[:, :k].T)
        actions["scores", k] = lambda rows=rows: problem.scores(rows)
    medians, firsts, spreads, processor = alternate(actions, repeats, limit, warm=True)
    best = min(sizes, key=lambda b: processor["gradient", b])
    unit, processor_unit = medians["gradient", best], processor["gradient", best]
    peak = 2 * PEAK**3 / processor["peak", 1]
    about = {"model": name, "p": size, "n": len(x)}
    rows = []
    for what, k in actions:
        key, vectors = (what, k), 1 if what == "gradient" else k
        label = f"gradient, batches of {k}" if what == "gradient" else what
        row = about | {"what": label, "vectors": vectors, "first": firsts[key], "seconds": None}
        if key in medians:
            flops = 2 * OPERATIONS.get(what, 0) * problem.footprint.work * len(x) * k
            row |= {
                "seconds": medians[key],
                "range": spreads[key],
                "passes": medians[key] / unit,
                "passes_each": medians[key] / unit / vectors,
                "processor_passes_each": processor[key] / processor_unit / vectors,
                "peak": flops / processor[key] / peak,
            }
        rows.append(row)
    return [row for row in rows if row["what"] != "peak"]


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
        kept.forget()  # Each call makes its preconditioner itself.
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
