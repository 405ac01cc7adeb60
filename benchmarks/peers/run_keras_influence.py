"""keras_influence itself, through the same command line: one public `influence` call.

Settings: `rank` of a Nyström preconditioner (0: none; the default of `CG` if not given), `curvature`,
`batch_size`, `tol`.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf
from common import Answer, main
from problems import MODELS

import keras_influence as ki
from keras_influence.questions import kept


def prepare(problem, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = MODELS[problem.kind]()
    model.set_weights(problem.weights)
    problem.check_loss(model.evaluate(problem.x_test, problem.y_test, verbose=0))
    return model


def influence(problem, model, settings, clock):
    options = {"tol": settings.get("tol", problem.tol), "max_iter": settings.get("max_iter", 2000)}
    if "rank" in settings:
        rank = settings["rank"]
        options["preconditioner"] = ki.Nystrom(rank) if rank else None
    method = ki.CG(**options)
    # A call by itself makes its preconditioner, however many came before it.
    kept.forget()
    with warnings.catch_warnings(), clock("influence"):
        warnings.simplefilter("ignore", ki.ConvergenceWarning)
        scores = ki.influence(
            model,
            (problem.x_test, problem.y_test),
            (problem.x_train, problem.y_train),
            method=method,
            damping=problem.damping,
            curvature=settings.get("curvature", "hessian"),
            batch_size=settings.get("batch_size"),
            target=margin if problem.target == "margin" else None,
            verbose=0,
        )
    details = {"residual": float(scores.residual.max()), "passes": float(scores.passes)}
    return Answer(np.asarray(scores), details=details)


def margin(x, y, y_pred):
    """Log-odds of the label, the same function as the peers' margin of the logits."""
    p = tf.gather(y_pred, y, axis=-1, batch_dims=1)
    return tf.math.log(p) - tf.math.log1p(-p)


if __name__ == "__main__":
    main({"cg": influence}, prepare, ["keras", "tensorflow-cpu", "numpy"], __doc__)
