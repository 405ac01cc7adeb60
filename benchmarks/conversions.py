"""Whether other libraries' numbers, converted by `peers/run_*.py`, are ours: sign, scale and order.

    benchmarks/peers/install.sh ENVIRONMENTS
    python benchmarks/conversions.py ENVIRONMENTS [--peers pydvl dattri ...]

Softmax regression on 200 of scikit-learn's digits, in four classes; the truth is the dense float64
solution of `peers/exact.py`, which shares no code with any library. For each method: the factor c for
which c x (what the script hands back) is nearest to the truth, and their correlation. An exact solver
whose conversion is right has 1 and 1; an approximation with the large damping, where the system is all
but λI. TRAK has no damping and an order only, and explains the margin.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

PEERS = pathlib.Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))

# isort: split
from common import Problem

N, TESTS = 200, 8
METHODS = [
    ("pydvl", "block_cg", "loss", 0.01, "batch=200"),
    ("pydvl", "ekfac", "loss", 0.01, "batch=200"),
    ("pydvl", "ekfac", "loss", 1000.0, "batch=200"),
    ("dattri", "cg", "loss", 0.01, "max_iter=50"),
    ("dattri", "ekfac", "loss", 0.01, ""),
    ("dattri", "ekfac", "loss", 1000.0, ""),
    ("captum", "naive", "loss", 0.01, "batch=200"),
    ("kronfluence", "ekfac", "loss", 0.01, "batch=200"),
    ("kronfluence", "ekfac", "loss", 1000.0, "batch=200"),
    ("trak", "trak", "margin", 0.01, "dim=2048 ridge=10 batch=100"),
]


def problem_for(target, damping):
    """Digits 0 to 3 and a softmax regression of scikit-learn's, as the peers' scripts read them."""
    digits = load_digits(n_class=4)
    x, y = (digits.images / 16)[..., None].astype(np.float32), digits.target.astype(np.int64)
    train, test = slice(N), slice(N, N + TESTS)
    fitted = LogisticRegression(C=0.05).fit(x[train].reshape(N, -1), y[train])
    weights = [fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)]
    probability = fitted.predict_proba(x[test].reshape(TESTS, -1))[np.arange(TESTS), y[test]]
    return Problem(
        kind="softmax",
        x_train=x[train],
        y_train=y[train],
        x_test=x[test],
        y_test=y[test],
        weights=weights,
        damping=damping,
        tol=1e-5,
        target=target,
        test_loss=float(-np.log(probability).mean()),
    )


def truth_for(problem):
    """(n_test, n): of the loss; of the margin log(p / (1 - p)), whose gradient is -∇ℓ / (1 - p)."""
    from exact import _softmax, softmax_regression_scores

    scores = softmax_regression_scores(problem)
    if problem.target == "loss":
        return scores
    theta = np.vstack([w.astype(np.float64) for w in problem.weights])
    _, p, _ = _softmax(problem.x_test, problem.y_test, theta)
    return -scores / (1 - p[np.arange(TESTS), problem.y_test])[:, None]


def compared(peer, method, problem, settings, environments, folder):
    """The factor and the correlation of a peer's converted scores and the truth, or None."""
    python = environments / peer / "bin" / "python"
    if not python.exists():
        return None
    file, result = folder / "problem.npz", folder / "result.npz"
    problem.save(file)
    arguments = [file, result, "--method", method, "--calls", "1", "--set", *settings.split()]
    subprocess.run([python, PEERS / f"run_{peer}.py", *arguments], check=True, capture_output=True)
    truth = truth_for(problem).ravel()
    with np.load(result) as found:
        theirs = found["scores"].astype(np.float64).ravel()
    return float(theirs @ truth / (theirs @ theirs)), float(np.corrcoef(theirs, truth)[0, 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", type=pathlib.Path, help="what peers/install.sh made")
    parser.add_argument("--peers", nargs="*", default=sorted({peer for peer, *_ in METHODS}))
    options = parser.parse_args()
    print("| library, method | explains | λ | factor | correlation |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for peer, method, target, damping, settings in METHODS:
            if peer in options.peers:
                places = options.environments, pathlib.Path(folder)
                found = compared(peer, method, problem_for(target, damping), settings, *places)
                words = "not installed | " if not found else f"{found[0]:.4f} | {found[1]:.4f}"
                print(f"| {peer}, `{method}` | {target} | {damping:g} | {words} |", flush=True)


if __name__ == "__main__":
    main()
