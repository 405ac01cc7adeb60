"""How many threads products take."""

import threading

import numpy as np
import pytest
import threadpoolctl

from keras_influence import CG, LiSSA
from keras_influence.linalg.arrays import side_by_side, taking_turns
from keras_influence.linalg.operators import Dense


def _threads():
    return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}


@pytest.mark.parametrize(("before", "within"), [(4, 2), (2, 1), (1, 1)])
def test_half_of_the_threads_and_all_of_them_afterwards(before, within):
    with threadpoolctl.threadpool_limits(before, user_api="blas"):
        with pytest.raises(ZeroDivisionError), taking_turns():
            assert _threads() == {within}
            raise ZeroDivisionError
        assert _threads() == {before}


@pytest.mark.parametrize("before", [2, 1])
def test_halves_are_at_work_at_once_where_there_are_threads_for_both(before):
    meeting, places = threading.Barrier(2, timeout=10), []

    def work(part):
        places.append(threading.get_ident())
        if before > 1:
            meeting.wait()
        return 2 * part

    with threadpoolctl.threadpool_limits(before, user_api="blas"), taking_turns():
        assert side_by_side(work, 1, 2) == (2, 4)
        # A factor that is made within takes turns itself.
        with taking_turns():
            assert side_by_side(work, 3, 4) == (6, 8)
    assert len(set(places[:2])) == len(set(places[2:])) == before
    assert side_by_side(lambda part: part + threading.active_count(), 0, 1) == (
        threading.active_count(),
        threading.active_count() + 1,
    )


@pytest.mark.parametrize("wrong", [1, 2])
def test_an_error_of_either_half_is_raised_with_what_numpy_takes_for_one(wrong):
    def work(part):
        return np.float64(1e300) * (1e300 if part == wrong else 1)

    with threadpoolctl.threadpool_limits(2, user_api="blas"), taking_turns():
        with pytest.raises(FloatingPointError), np.errstate(over="raise"):
            side_by_side(work, 1, 2)
        with np.errstate(over="ignore"):
            assert np.inf in side_by_side(work, 1, 2)


@pytest.mark.parametrize("solver", [CG(preconditioner=None), LiSSA()], ids=str)
def test_solvers_that_alternate_take_turns(solver, rng):
    """Their first product may be the start's residual, and the last one is the certificate's."""
    found = []

    class Asking(Dense):
        def matmat(self, rows):
            found.append(_threads())
            return super().matmat(rows)

    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        solver.solve(Asking(np.diag([1.0, 2.0, 3.0])), rng.normal(size=(1, 3)))
    assert {2} in found
    assert found[-1] == {4}
