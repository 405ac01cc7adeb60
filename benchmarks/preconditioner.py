"""How many passes does a preconditioner save, and does it pay in time?

Solves (G + λI) x = v, G the Gauss-Newton matrix, for test gradients at equal residual: by
conjugate gradients alone, preconditioned by `Nystrom`, `EKFAC` and `TwoLevel` of several ranks, by
`ASTRA` and by self-tuning `LiSSA`; and by `EKFAC` and `TwoLevel` alone, for their residuals.

A pass is one product with all right-hand sides that are still in play. "make" is what is computed once
for the matrix, "solve" the rest; seconds are of one run each, with tracing done before, in units
of a gradient pass over the same data too.

    python benchmarks/preconditioner.py [--models softmax mlp conv] [--n 5000] [--counts 1 10 100] [--table]
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import gradient_pass
from problems import environment, fashion_mnist, trained
from timing import alternate

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC, LiSSA, Nystrom, TwoLevel
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped

# Damping and residual for each model.
SETTINGS = {"softmax": (1e-3, 4e-5), "mlp": (1e-2, 1e-3), "conv": (1e-2, 1e-3)}
RANKS = (500, 1000, 2000)


def main(options):
    x, y, name = fashion_mnist(options.n)
    print(f"{name}, n = {options.n}", environment(), "", sep="\n")
    print(
        "| model | right-hand sides | solver | iterations | make, s | solve, s | in gradient passes | residual |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        damping, tol = SETTINGS[kind]
        model = trained(kind, x, y)
        problem = Problem(model, (x, y))
        x_test, y_test, _ = fashion_mnist(max(options.counts), "test")
        rows = problem.example_gradients(problem.read((x_test, y_test), "test"))
        operator = Damped(problem.curvature("gauss_newton"), damping)
        unit = alternate({"pass": gradient_pass(model, x, y)})[0]["pass"]
        for count in options.counts:
            for solver in solvers(tol, options.table):
                made, solved, solution = timed(solver, operator, rows[:count])
                passes = (made + solved) / unit
                print(
                    f"| {kind} | {count} | {label(solver)} | {solution.iterations.max()} "
                    f"| {made:.2f} | {solved:.2f} | {passes:.0f} | {solution.residual.max():.1e} |",
                    flush=True,
                )


def solvers(tol, table):
    """Those that are compared."""
    inner = [None, Nystrom(50), EKFAC(), *(TwoLevel(rank) for rank in RANKS)]
    found = [CG(tol=tol, preconditioner=i) for i in inner]
    return found if table else [*found, ASTRA(tol=tol), LiSSA(tol=tol), EKFAC(), TwoLevel()]


def timed(solver, operator, rows):
    """Seconds to make the factor, to solve with it, and the `Solution`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ki.ConvergenceWarning)
        # Tracing is done before.
        solver.factorise(operator.operator, operator.damping)
        operator.matmat(rows)
        start = time.perf_counter()
        factor = solver.factorise(operator.operator, operator.damping)
        middle = time.perf_counter()
        solution = solver.solve(operator, rows, factor=factor)
    return middle - start, time.perf_counter() - middle, solution


def label(solver):
    """A solver's name, with its preconditioner's."""
    own, inner = type(solver).__name__, getattr(solver, "preconditioner", None)
    if not isinstance(solver, CG) or inner is None:
        return own
    rank = getattr(inner, "rank", "")
    return f"{own} + {type(inner).__name__}{f'({rank})' if rank else ''}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--table", action="store_true", help="conjugate gradients alone")
    main(parser.parse_args())
