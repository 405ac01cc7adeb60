"""What `method="auto"` chooses by cost, and options that are refused."""

import numpy as np
import pytest

from keras_influence import ASTRA, CG, EKFAC, Arnoldi, Auto, Direct
from keras_influence.linalg.operators.network import Contributions


@pytest.mark.parametrize(
    ("size", "n", "count", "expected"),
    [
        (650, 1000, 1, Direct),  # Soon done, and exact.
        (650, 1000, 1000, Direct),
        (2500, 5000, 1, CG),
        (7850, 5000, 10, CG),
        (1200, 60_000, 1000, Direct),
        (7850, 60_000, 1000, EKFAC),
        (101_770, 5000, 10, CG),
        (101_770, 60_000, 1000, EKFAC),
        (10**8, 10**6, 100, EKFAC),
    ],
)
def test_auto_weighs_the_costs(size, n, count, expected):
    solver, reason = Auto().choose(size, n, count)
    assert type(solver) is expected
    if expected is EKFAC:
        assert "tens of per cent: CG(preconditioner='auto') is exact" in reason
    assert f"{size} parameters, {n} examples, {count} right-hand sides" in reason


@pytest.mark.parametrize(
    ("size", "batches", "alone", "expected"),
    [
        (500, 1, 0.0, Direct),
        (500, 1, 3e7, Direct),
        (500, 1, 1.5e8, CG),  # Each of 500 products takes five milliseconds by itself.
        (500, 10, 3e7, CG),
        (1500, 1, 0.0, CG),
        (300, 10, 0.0, Direct),
    ],
)
def test_auto_counts_what_calls_and_vectors_take_by_themselves(size, batches, alone, expected):
    solver, reason = Auto().choose(size, 100, 5, work=10 * size, batches=batches, alone=alone)
    assert type(solver) is expected
    assert ("the dense matrix is small" if expected is Direct else "what costs least") in reason


@pytest.mark.parametrize(
    ("tracing", "expected"), [(0.0, CG()), (4e10, CG(preconditioner="nystrom"))]
)
def test_auto_counts_what_tracing_takes(tracing, expected):
    """Of a small network a sketch is made before."""
    about = {"work": 1e4, "bases": 0.0, "tracing": tracing}
    solver, _ = Auto().choose(1500, 500, 5, **about)
    assert repr(solver) == repr(expected)
    all_of_them = Contributions(200, True, 1e6)
    solver, _ = Auto().choose(1500, 500, 5, **about, contributions=all_of_them)
    assert repr(solver) == repr(expected)


@pytest.mark.parametrize(
    ("count", "damping", "expected"),
    [
        (1, 1e-2, "nystrom"),  # Products are cheap, and eigenvectors are not.
        (10, 1e-3, "auto"),
        (100, 1e-2, "auto"),
    ],
)
def test_auto_makes_what_pays(count, damping, expected):
    """Softmax regression of images of 28 x 28 pixels, 5,000 of them."""
    bases = 20 * 784**3
    solver, _ = Auto().choose(7850, 5000, count, work=7850, bases=bases, damping=damping)
    assert solver.preconditioner == expected
    without, _ = Auto().choose(7850, 5000, count, work=7850, bases=None, damping=damping)
    assert without.preconditioner == "nystrom"  # No layers that are worth it.


@pytest.mark.parametrize(
    ("whole", "operations", "sketched"),
    [(True, 3e10, False), (True, 4e10, False), (True, 6e10, True), (False, 4e10, True)],
)
def test_auto_prefers_what_is_sure_to_a_guess(whole, operations, sketched):
    """Iterations are guessed: all contributions may cost half as much again, a part of them may not."""
    contributions = Contributions(200, whole, operations)
    solver, _ = Auto().choose(1500, 500, 5, work=1e4, bases=None, contributions=contributions)
    assert repr(solver) == repr(CG(preconditioner="nystrom") if sketched else CG())


def test_auto_is_exact_where_few_contributions_are_all_there_are():
    """Too many parameters for the budget otherwise; with 200 examples, of two outputs each."""
    about = {"size": 130_000, "n": 200, "count": 4, "work": 4e6}
    without, _ = Auto(budget=1e10).choose(**about, bases=None)
    assert isinstance(without, EKFAC)
    few = Contributions(400, whole=True, operations=4e10)
    solver, reason = Auto(budget=1e10).choose(**about, contributions=few)
    assert (type(solver), solver.preconditioner) == (CG, "auto")
    assert "what costs least" in reason


@pytest.mark.parametrize(
    ("size", "n", "workers", "expected", "slow"),
    [
        (10**5, 10**6, 0, EKFAC, False),
        (10**5, 10**6, 64, CG, False),  # Their shares are within the budget.
        (
            25 * 10**5,
            64_000,
            64,
            EKFAC,
            True,
        ),  # As is a share of 1,000 examples; what is sent is not.
        (25 * 10**5, 1000, 0, CG, False),
        (10**6, 64_000, 1, EKFAC, False),
        (2000, 64, 64, CG, True),
    ],
)
def test_auto_counts_what_is_sent_to_workers(size, n, workers, expected, slow):
    solver, reason = Auto().choose(size, n, 3, workers=workers)
    assert type(solver) is expected
    assert ("take longer to send than to work" in reason) is slow
    assert (f", {workers} workers" in reason) is (workers > 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Arnoldi(rank=0), "`rank`"),
        (lambda: Arnoldi(complement="keep"), "`complement`.*'drop'"),
        (lambda: EKFAC(seed=0.5), "`seed`"),
        (lambda: Auto(budget=-1), "`budget`"),
        (lambda: CG(preconditioner=Arnoldi()), "`preconditioner`"),
        (lambda: CG(preconditioner=np.zeros(3)), "`preconditioner`"),
        (lambda: ASTRA(batch_size=0), "`batch_size`"),
    ],
)
def test_bad_options_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@pytest.mark.parametrize(
    ("assembling", "count", "expected"),
    [
        (None, 1000, EKFAC),  # As many products as there are parameters.
        (4e11, 1000, Direct),
        (4e11, 5, CG),  # Few right-hand sides are not worth a matrix.
    ],
)
def test_auto_counts_what_contributions_write_out(assembling, count, expected):
    """Softmax regression of 20,000 images of 28 x 28 pixels."""
    solver, _ = Auto().choose(7850, 20_000, count, work=7850, assembling=assembling)
    assert type(solver) is expected
