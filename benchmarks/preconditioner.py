"""How many passes does a preconditioner save, and does it pay in time?

Solves (G + λI) x = v, G the Gauss-Newton matrix, for test gradients at equal residual: by
conjugate gradients alone, preconditioned by `Nystrom`, `EKFAC`, `TwoLevel` and `Woodbury` of several ranks, by
`ASTRA` and by self-tuning `LiSSA`; and by `EKFAC` and `TwoLevel` alone, for their residuals.

A pass is one product with all right-hand sides that are still in play. "make" is what is computed once
for the matrix, "solve" the rest; seconds are of one run each, with tracing done before, in units
of a gradient pass over the same data too.

With --growth: how the number of iterations of conjugate gradients as they are by default grows as λ
falls from 1e-1 to 1e-5, to a residual of 1e-3. "made of" is how many directions or contributions of examples the
preconditioner has, "make" and "solve" are processor seconds.

    python benchmarks/preconditioner.py [--models softmax mlp conv] [--n 5000] [--counts 1 10 100] [--table]
    python benchmarks/preconditioner.py --growth [--models softmax mlp conv transformer] [--n 2000] [--counts 1 10]
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from measure import gradient_pass
from problems import MODELS, data, environment, fashion_mnist, trained
from timing import alternate

import keras_influence as ki
from keras_influence import ASTRA, CG, EKFAC, LiSSA, Nystrom, TwoLevel, Woodbury
from keras_influence.engine.problem import Problem
from keras_influence.linalg.factors.contributions import ContributionsFactor
from keras_influence.linalg.factors.low_rank import LowRank
from keras_influence.linalg.operators import Damped

# Damping and residual for each model.
SETTINGS = {"softmax": (1e-3, 4e-5), "mlp": (1e-2, 1e-3), "conv": (1e-2, 1e-3)}
RANKS = (500, 1000, 2000)
DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Iterations at most for the table of --growth.
MOST = 200
KEPT = []


def main(options):
    print(f"{fashion_mnist(1)[2]}, n = {options.n}", environment(), "", sep="\n", flush=True)
    (growth if options.growth else compare)(options)


def growth(options):
    """Iterations of the default for each λ."""
    print("| model | right-hand sides | λ | made of | make, s | solve, s | iterations | residual |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        operator, rows = system(kind, options.n, max(options.counts))
        for damping in DAMPINGS:
            start = time.process_time()
            factor = CG().prepare(operator, damping)
            make = time.process_time() - start
            for count in options.counts:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ki.ConvergenceWarning)
                    solver = CG(tol=1e-3, max_iter=MOST)
                    start = time.process_time()
                    solution = solver.solve(Damped(operator, damping), rows[:count], factor=factor)
                    solve = time.process_time() - start
                print(
                    f"| {kind} | {count} | {damping:g} | {size_of(factor)} | {make:.2f} | {solve:.2f} "
                    f"| {solution.iterations.max()} | {solution.residual.max():.1e} |",
                    flush=True,
                )


def size_of(factor):
    """Of what a factor is made."""
    if isinstance(factor, LowRank):
        return f"sketch of {len(factor.vectors)}"
    kind = "contributions" if isinstance(factor, ContributionsFactor) else "directions"
    return f"{len(factor.cholesky)} {kind}"


def system(kind, n, count):
    """The Gauss-Newton matrix of a model, and gradients of test examples."""
    problem = Problem(trained(kind, *data(kind, n)), data(kind, n))
    KEPT.append(problem)  # An operator alone does not keep its model.
    rows = problem.example_gradients(problem.read(data(kind, count, "test"), "test"))
    return problem.curvature("gauss_newton"), rows


def compare(options):
    """Iterations and seconds of each solver, at one λ."""
    print(
        "| model | right-hand sides | solver | iterations | make, s | solve, s | in gradient passes | residual |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.models:
        damping, tol = SETTINGS[kind]
        curvature, rows = system(kind, options.n, max(options.counts))
        operator, model = Damped(curvature, damping), KEPT[-1].model
        unit = alternate({"pass": gradient_pass(model, *data(kind, options.n))})[0]["pass"]
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
    inner = [None, Nystrom(50), EKFAC(), *(TwoLevel(rank) for rank in RANKS), Woodbury()]
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
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--counts", nargs="+", type=int)
    parser.add_argument("--n", type=int)
    parser.add_argument("--table", action="store_true", help="conjugate gradients alone")
    parser.add_argument("--growth", action="store_true", help="iterations for one λ after another")
    options = parser.parse_args()
    options.models = options.models or [*SETTINGS, *(["transformer"] if options.growth else [])]
    options.counts = options.counts or ([1, 10] if options.growth else [1, 10, 100])
    options.n = options.n or (2000 if options.growth else 5000)
    main(options)
