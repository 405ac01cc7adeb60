"""What it costs to certify what is believed, in gradient passes over the same data.

    python benchmarks/certificates.py [--n 5000]

"looks" is all that is looked at before a question (how the loss is read, that examples do not
mix, that traces are fresh); "scores" the identity on each batch, the difference between scores
as users get them and the bare kernels. Each is timed in turn with the gradient pass.
"""

import argparse

import numpy as np
import tensorflow as tf
from measure import gradient_pass
from problems import data, environment, trained
from timing import alternate

from keras_influence.engine.layers.contraction import Contraction
from keras_influence.engine.problem import Problem


def costs(name, n, repeats):
    """Median seconds by what is done."""
    x, y = data(name, n)
    model = trained(name, x, y, epochs=1, seed=0)
    problem = Problem(model, (x, y))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((10, problem.parameters.size)).astype(np.float32)
    vectors, weight = tf.constant(rows), problem.facts.examples()
    problem.scores(rows)
    kernel = problem.objective.made(Contraction).scores

    def bare():
        for batch in problem.train:
            kernel(batch, weight, vectors)

    actions = {
        "gradient pass": gradient_pass(model, x, y),
        "reading the data": lambda: list(problem.train),
        "problem": lambda: Problem(model, (x, y)),
        "scores": lambda: problem.scores(rows),
        "bare scores": bare,
    }
    return alternate(actions, repeats)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    print(
        "| model | gradient pass, ms | looks, passes | scores against 10 vectors: certificate, passes |"
    )
    print("|---|---|---|---|")
    for name in ("softmax", "mlp", "conv"):
        seconds = costs(name, options.n, options.repeats)
        unit = seconds["gradient pass"]
        looks = seconds["problem"] / unit
        certificate = (seconds["scores"] - seconds["bare scores"]) / unit
        print(f"| {name} | {1e3 * unit:.0f} | {looks:.2f} | {certificate:.2f} |")


if __name__ == "__main__":
    main()
