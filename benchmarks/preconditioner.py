"""How many passes does a Nyström preconditioner save, and does it pay in time?

Solves (G + λI) x = v, G the Gauss-Newton matrix, for ten test gradients at equal residual,
by CG alone, by CG with Nyström and EK-FAC preconditioners, by ASTRA and by self-tuning
LiSSA; and EK-FAC alone, for its residual.

A pass is one product with all columns that are still in play; a sketch of rank r is one
pass with r columns. The seconds are of one run each, the first, with tracing done before.

    python benchmarks/preconditioner.py [--models mlp conv] [--n 2000] [--columns 10] [--nystrom]
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from problems import environment, fashion_mnist, trained

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC, LiSSA, Nystrom
from keras_influence.engine.problem import Problem
from keras_influence.linalg.operators import Damped

TOL = 1e-3


def main(models, n, columns, damping, nystrom):
    x, y, name = fashion_mnist(n)
    x_test, y_test, _ = fashion_mnist(columns, "test")
    print(f"{name}, n = {n}, damping {damping:g}, residual {TOL:g}, {columns} right-hand sides")
    print(environment(), "\n")
    print("| model | solver | passes | seconds | seconds in passes of one gradient | residual |")
    print("|---|---|---|---|---|---|")
    for kind in models:
        model = trained(kind, x, y)
        problem = Problem(model, (x, y))
        rows = problem.example_gradients(problem.read((x_test, y_test), "test"))
        operator = Damped(problem.curvature("gauss_newton"), damping)
        unit = _gradient_pass(problem)
        operator.matmat(rows)
        solvers = [CG(tol=TOL)]
        solvers += [CG(tol=TOL, preconditioner=Nystrom(rank)) for rank in (20, 50, 100)]
        if not nystrom:
            solvers += [CG(tol=TOL, preconditioner=EKFAC()), ASTRA(tol=TOL), EKFAC()]
            solvers += [LiSSA(tol=TOL)]
        for solver in solvers:
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ki.ConvergenceWarning)
                solution = solver.solve(operator, rows)
            seconds = time.perf_counter() - start
            label = str(solver).split("(")[0]
            if isinstance(solver, CG) and solver.preconditioner:
                inner = solver.preconditioner
                label += f" + Nystrom({inner.rank})" if isinstance(inner, Nystrom) else " + EKFAC"
            print(
                f"| {kind} | {label} | {solution.passes:.0f} | {seconds:.1f} | "
                f"{seconds / unit:.0f} | {solution.residual.max():.1e} |",
                flush=True,
            )


def _gradient_pass(problem):
    """Seconds for one compiled gradient of all the training data, median of five."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for batch in problem.train:
            problem.objective.gradient(batch).numpy()
        times.append(time.perf_counter() - start)
    return np.median(times[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "conv"])
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--damping", type=float, default=1e-3)
    parser.add_argument("--nystrom", action="store_true", help="CG with and without Nyström only")
    o = parser.parse_args()
    main(o.models, o.n, o.columns, o.damping, o.nystrom)
